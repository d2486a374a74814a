"""`python -m data_plane.router`: a router and its HTTP gateway."""

from __future__ import annotations

import sys

from common.config import load_config
from common.service import run_service
from data_plane.router.config import RouterConfig
from data_plane.router.wiring import SERVICE, serve
from fairlead.errors import FairleadError


def main() -> int:
    """Parses, wires, runs.

    Returns:
        Exit code.
    """
    try:
        config = load_config(RouterConfig, SERVICE, sys.argv[1:])
    except FairleadError as error:
        sys.stderr.write(f"router: {error.message}\n")
        return 2
    return run_service(SERVICE, config, lambda stop: serve(config, stop))


if __name__ == "__main__":
    sys.exit(main())
