"""The small HTTP server every process has for people and machines that look after it: /livez, /readyz, /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from common.config import CommonConfig
from fairlead.errors import InvalidArgumentError


class OpsServer:
    """Serves liveness, readiness and metrics.

    Args:
        config: Where to listen.
        registry: The process's metrics.
        readiness: Says why the process is not ready, or None when it is. Liveness is that this server answers.
        page: Makes the metrics page, where it holds more than the registry.
    """

    def __init__(
        self,
        config: CommonConfig,
        registry: CollectorRegistry,
        readiness: Callable[[], str | None],
        *,
        page: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._readiness = readiness
        self._page = page
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        self.address = ""

    async def start(self) -> str:
        """Listens.

        Returns:
            host:port that others dial.

        Raises:
            InvalidArgumentError: The port cannot be had.
        """
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._config.bind_host, self._config.ops_port)
        try:
            await site.start()
        except OSError as error:
            raise InvalidArgumentError(
                f"cannot listen on {self._config.bind_host}:{self._config.ops_port} ({error.strerror}); set ops_port"
            ) from error
        port = self._runner.addresses[0][1]
        self.address = f"{self._config.reachable_host}:{port}"
        return self.address

    async def stop(self) -> None:
        """Stops listening."""
        await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        why_not = self._readiness()
        return web.Response(text=f"{why_not or 'ok'}\n", status=503 if why_not else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._registry) if self._page is None else await self._page()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
