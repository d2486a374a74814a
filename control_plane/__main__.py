"""`python -m control_plane`."""

from __future__ import annotations

import functools
import sys

from common.config import load_config
from common.service import run_service
from control_plane.config import SERVICE, ControlPlaneConfig
from control_plane.wiring import serve
from fairlead.errors import InvalidArgumentError


def main() -> int:
    """Parses the command line, wires and runs the control plane."""
    try:
        config = load_config(ControlPlaneConfig, SERVICE, sys.argv[1:])
    except InvalidArgumentError as error:
        sys.stderr.write(f"{SERVICE}: {error.message}\n")
        return 2
    return run_service(SERVICE, config, functools.partial(serve, config))


if __name__ == "__main__":
    sys.exit(main())
