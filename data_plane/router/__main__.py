"""`python -m data_plane.router`: a router and its HTTP gateway, or a supervisor with several of them."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from common import native

if TYPE_CHECKING:
    from data_plane.router.config import RouterConfig


def main() -> int:
    """Runs the service; returns its exit code. Everything is imported after what decides how it is loaded."""
    state = native.install()
    from common.logs import get_logger
    from common.service import run_service
    from data_plane.router.config import RouterConfig

    async def serve(config: RouterConfig, stop: asyncio.Event) -> None:
        """Runs what the settings ask for until `stop` is set; a supervisor does without most of a router's modules."""
        get_logger("data_plane.router").info("native code", native=state)
        if config.workers > 1:
            from data_plane.supervisor.service import supervise

            await supervise(config, stop)
        else:
            from data_plane.router.wiring import serve as route

            await route(config, stop)

    return run_service("router", RouterConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
