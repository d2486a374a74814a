"""`python -m data_plane.autoscaler`."""

from __future__ import annotations

import functools
import sys

from common.config import load_config
from common.service import run_service
from data_plane.autoscaler.config import SERVICE, AutoscalerConfig
from data_plane.autoscaler.wiring import serve
from fairlead.errors import InvalidArgumentError


def main() -> int:
    """Parses the command line, wires and runs the autoscaler."""
    try:
        config = load_config(AutoscalerConfig, SERVICE, sys.argv[1:])
    except InvalidArgumentError as error:
        sys.stderr.write(f"{SERVICE}: {error.message}\n")
        return 2
    return run_service(SERVICE, config, functools.partial(serve, config))


if __name__ == "__main__":
    sys.exit(main())
