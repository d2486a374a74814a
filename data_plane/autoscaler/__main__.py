"""`python -m data_plane.autoscaler`."""

from __future__ import annotations

import sys

from common.service import run_service
from data_plane.autoscaler.config import SERVICE, AutoscalerConfig
from data_plane.autoscaler.wiring import serve

if __name__ == "__main__":
    sys.exit(run_service(SERVICE, AutoscalerConfig, serve))
