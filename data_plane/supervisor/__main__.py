"""`python -m data_plane.supervisor`: routers under a supervisor, also where it is only one."""

from __future__ import annotations

import sys

from common.service import run_service
from data_plane.router.config import RouterConfig
from data_plane.supervisor.service import SERVICE, supervise

if __name__ == "__main__":
    sys.exit(run_service(SERVICE, RouterConfig, supervise))
