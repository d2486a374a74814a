"""`python -m capacity`."""

from __future__ import annotations

import sys

from capacity.config import SERVICE, CapacityConfig
from capacity.wiring import serve
from common.service import run_service

if __name__ == "__main__":
    sys.exit(run_service(SERVICE, CapacityConfig, serve))
