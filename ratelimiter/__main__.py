"""`python -m ratelimiter`."""

from __future__ import annotations

import functools
import sys

from common.config import load_config
from common.service import run_service
from fairlead.errors import InvalidArgumentError
from ratelimiter.config import SERVICE, RateLimiterConfig
from ratelimiter.wiring import serve


def main() -> int:
    """Parses the command line, wires and runs the rate limiter."""
    try:
        config = load_config(RateLimiterConfig, SERVICE, sys.argv[1:])
    except InvalidArgumentError as error:
        sys.stderr.write(f"{SERVICE}: {error.message}\n")
        return 2
    return run_service(SERVICE, config, functools.partial(serve, config))


if __name__ == "__main__":
    sys.exit(main())
