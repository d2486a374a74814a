"""A module that says how it was begun, for test_nursery.py."""

from __future__ import annotations

import atexit
import os
import sys
import time

if __name__ == "__main__":
    before = [name for name in sys.modules if name.split(".")[0] in ("common", "data_plane", "engines", "fairlead")]
    if sys.argv[1] == "wait":
        sys.stderr.write("waiting\n" if "aloud" in sys.argv else "")
        time.sleep(60)
    atexit.register(sys.stderr.write, "at exit\n")
    sys.stderr.write(
        f"main: {' '.join(sys.argv[1:])}\nenvironment: {os.environ['FAIRLEAD_BEGUN']}\nof ours: {before}\n"
    )
    sys.exit(int(sys.argv[2]))
