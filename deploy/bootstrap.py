"""Makes the environments, then becomes a command inside them: the first thing every make target runs.

    python3 deploy/bootstrap.py [--this-python] [--tests] [--triton auto|yes|no] [-- PYTHON_ARGUMENTS...]

Needs nothing but Python 3.11 or newer and its standard library, and must be readable by much older ones, so that
they can say so instead of failing with a syntax error: hence the plain language here. The work is in environments.py.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PYTHON_MIN = (3, 11)
NEWER_NAMES = ("python3.13", "python3.12", "python3.11", "python3.14")
PROBE = "import sys; sys.exit(sys.version_info < (3, 11))"

# Distributions compile their Python with a profile; who compiles one by hand gets one that takes half as long again,
# unless they ask. It must be able to make environments and to be compiled for.
SYSTEM_PYTHON = "/usr/bin/python3"
SYSTEM_PROBE = """
import ensurepip, os, sys, sysconfig, venv
sys.exit(sys.version_info < (3, 11) or not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
"""


def main() -> int:
    """Checks the interpreter, looks for a newer or faster one where it is too old or slow, and hands over."""
    chosen = "--this-python" in sys.argv[1:2]
    if chosen:
        del sys.argv[1]
    if sys.version_info < PYTHON_MIN:
        for name in NEWER_NAMES:
            path = shutil.which(name)
            if path and subprocess.call([path, "-c", PROBE], stderr=subprocess.DEVNULL) == 0:
                os.execv(path, [path, *sys.argv])
        found_version = ".".join(map(str, sys.version_info[:3]))
        sys.stderr.write(f"Fairlead needs Python 3.11 or newer; {sys.executable} is {found_version}.\n")
        sys.stderr.write("Install one and name it: make PYTHON=/path/to/python3.12\n")
        return 1
    faster = "" if chosen else faster_python(sys.base_prefix, sysconfig.get_config_var("CONFIG_ARGS") or "")
    if faster:
        os.execv(faster, [faster, *sys.argv])
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from deploy.environments import main as make_environments

    return make_environments(sys.argv[1:])


def optimized(base_prefix: str, options: str) -> bool:
    """Whether a Python was compiled with optimizations, as far as it tells; arguments as in `faster_python`."""
    return base_prefix == "/usr" or not options or "--enable-optimizations" in options


def faster_python(base_prefix: str, options: str) -> str:
    """The system's own Python, where this one was compiled by hand and without optimizations; empty for this one.

    Args:
        base_prefix: Where this one is installed.
        options: What it was configured with.
    """
    if optimized(base_prefix, options) or not Path(SYSTEM_PYTHON).exists():
        return ""
    unfit = subprocess.call([SYSTEM_PYTHON, "-c", SYSTEM_PROBE], stderr=subprocess.DEVNULL)
    return "" if unfit else SYSTEM_PYTHON


if __name__ == "__main__":
    sys.exit(main())
