"""`python -m control_plane`."""

from __future__ import annotations

import sys

from common.service import run_service
from control_plane.config import SERVICE, ControlPlaneConfig
from control_plane.wiring import serve

if __name__ == "__main__":
    sys.exit(run_service(SERVICE, ControlPlaneConfig, serve))
