"""`python -m deploy.docker.edge`."""

from __future__ import annotations

import asyncio
import sys

from common.config import load_config
from common.ops import OpsServer
from common.service import run_service
from common.telemetry import Telemetry
from deploy.docker.edge.config import EdgeConfig
from deploy.docker.edge.service import Edge


def main() -> int:
    """Runs the edge until it is told to stop.

    Returns:
        Exit status.
    """
    config = load_config(EdgeConfig, "edge", sys.argv[1:])

    async def serve(stop: asyncio.Event) -> None:
        telemetry = Telemetry("edge", config)
        edge = Edge(config, telemetry.registry)
        ops = OpsServer(config, telemetry.registry, edge.readiness)
        await ops.start()
        try:
            await edge.serve(stop)
        finally:
            await ops.stop()
            telemetry.shutdown()

    return run_service("edge", config, serve)


if __name__ == "__main__":
    sys.exit(main())
