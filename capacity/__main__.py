"""`python -m capacity`."""

from __future__ import annotations

import functools
import sys

from capacity.config import SERVICE, CapacityConfig
from capacity.wiring import serve
from common.config import load_config
from common.service import run_service
from fairlead.errors import InvalidArgumentError


def main() -> int:
    """Parses the command line, wires and runs the capacity allocator."""
    try:
        config = load_config(CapacityConfig, SERVICE, sys.argv[1:])
    except InvalidArgumentError as error:
        sys.stderr.write(f"{SERVICE}: {error.message}\n")
        return 2
    return run_service(SERVICE, config, functools.partial(serve, config))


if __name__ == "__main__":
    sys.exit(main())
