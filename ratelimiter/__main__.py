"""`python -m ratelimiter`."""

from __future__ import annotations

import sys

from common.service import run_service
from ratelimiter.config import SERVICE, RateLimiterConfig
from ratelimiter.wiring import serve

if __name__ == "__main__":
    sys.exit(run_service(SERVICE, RateLimiterConfig, serve))
