"""Makes the environments, then becomes a command inside them: the first thing every make target runs.

    python3 deploy/bootstrap.py [--tests] [--triton auto|yes|no] [-- PYTHON_ARGUMENTS...]

Needs nothing but Python 3.11 or newer and its standard library, and must be readable by much older ones, so that
they can say so instead of failing with a syntax error: hence the plain language here. The work is in environments.py.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PYTHON_MIN = (3, 11)
NEWER_NAMES = ("python3.13", "python3.12", "python3.11", "python3.14")
PROBE = "import sys; sys.exit(sys.version_info < (3, 11))"


def main() -> int:
    """Checks the interpreter, looks for a newer one where it is too old, and hands over."""
    if sys.version_info < PYTHON_MIN:
        for name in NEWER_NAMES:
            path = shutil.which(name)
            if path and subprocess.call([path, "-c", PROBE], stderr=subprocess.DEVNULL) == 0:
                os.execv(path, [path, *sys.argv])
        found_version = ".".join(map(str, sys.version_info[:3]))
        sys.stderr.write(f"Fairlead needs Python 3.11 or newer; {sys.executable} is {found_version}.\n")
        sys.stderr.write("Install one and name it: make PYTHON=/path/to/python3.12\n")
        return 1
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from deploy.environments import main as make_environments

    return make_environments(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
