"""`python -m engines`: one replica, the agent and the engine beside it."""

from __future__ import annotations

import functools
import sys

from common.config import load_config
from common.service import run_service
from engines.config import SERVICE, EngineConfig
from engines.wiring import serve
from fairlead.errors import InvalidArgumentError


def main() -> int:
    """Parses the command line, wires and runs the replica."""
    try:
        config = load_config(EngineConfig, SERVICE, sys.argv[1:])
    except InvalidArgumentError as error:
        sys.stderr.write(f"{SERVICE}: {error.message}\n")
        return 2
    return run_service(SERVICE, config, functools.partial(serve, config))


if __name__ == "__main__":
    sys.exit(main())
