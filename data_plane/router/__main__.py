"""`python -m data_plane.router`: a router and its HTTP gateway."""

from __future__ import annotations

import sys

from common.service import run_service
from data_plane.router.config import RouterConfig
from data_plane.router.wiring import SERVICE, serve

if __name__ == "__main__":
    sys.exit(run_service(SERVICE, RouterConfig, serve))
