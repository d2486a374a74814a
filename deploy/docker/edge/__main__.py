"""`python -m deploy.docker.edge`."""

from __future__ import annotations

import asyncio
import sys

from common.ops import OpsServer
from common.service import run_service
from common.telemetry import Telemetry
from deploy.docker.edge.config import EdgeConfig
from deploy.docker.edge.service import Edge


async def serve(config: EdgeConfig, stop: asyncio.Event) -> None:
    """Runs the edge until `stop` is set."""
    telemetry = Telemetry("edge", config)
    edge = Edge(config, telemetry.registry)
    ops = OpsServer(config, telemetry.registry, edge.readiness)
    await ops.start()
    try:
        await edge.serve(stop)
    finally:
        await ops.stop()
        telemetry.shutdown()


if __name__ == "__main__":
    sys.exit(run_service("edge", EdgeConfig, serve))
