"""`python -m deploy.native [LEVEL]`, behind `make native`: LEVEL is the C compiler's, "0" to "3"."""

from __future__ import annotations

import os
import sys

from deploy.native.building import build
from deploy.native.modules import MODULES
from deploy.work import CHECKOUT, BuildError, Work


def main() -> int:
    """Builds; returns the exit code."""
    os.chdir(CHECKOUT)
    try:
        build(CHECKOUT, MODULES, Work(), *sys.argv[1:2])
    except BuildError as error:
        sys.stderr.write(f"No native build: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
