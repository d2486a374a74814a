"""`python -m engines`: one replica, the agent and the engine beside it."""

from __future__ import annotations

import sys

from common.service import run_service
from engines.config import SERVICE, EngineConfig
from engines.wiring import serve

if __name__ == "__main__":
    sys.exit(run_service(SERVICE, EngineConfig, serve))
