"""The HTTP server: aiohttp with limits, a shared port, answers in OpenAI's shape even to broken HTTP, and a drain."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from common.logs import get_logger
from data_plane.gateway import errors
from data_plane.gateway.app import Gateway
from fairlead.errors import InvalidArgumentError

log = get_logger(__name__)

HEADER_BYTES_MAX = 16 << 10
_KEEPALIVE_S = 75.0


class _Protocol(RequestHandler):
    """One connection; answers broken HTTP in the shape of every other error."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See aiohttp; called for what cannot be parsed, and for what escaped every handler."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; nothing else can be said on this connection")
        if isinstance(exc, LineTooLong):
            status, message = 431, f"a header or the request line is longer than {HEADER_BYTES_MAX} bytes"
        elif status < 500:
            message = "this is not a valid HTTP request"
        else:
            log.error("unexpected error", exc_info=exc, path=request.path)
            message = "internal error; the service's log has the details"
        reason = "INVALID_ARGUMENT" if status < 500 else "INTERNAL"
        body = errors.render(message, status=status, code="malformed_http" if status < 500 else None, reason=reason)
        headers = {"x-request-id": secrets.token_hex(12)}
        response = web.Response(body=body, status=status, content_type="application/json", headers=headers)
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, handler: Any, options: dict[str, Any], **others: Any) -> None:
        super().__init__(handler, **others, **options)
        self._options = options

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=asyncio.get_running_loop(), **self._options)


class _Runner(web.AppRunner):
    async def _make_server(self) -> Any:
        made = await super()._make_server()
        options = {
            "max_field_size": HEADER_BYTES_MAX,
            "max_line_size": HEADER_BYTES_MAX,
            "keepalive_timeout": _KEEPALIVE_S,
            "access_log": None,
            "tcp_keepalive": True,
        }
        return _Server(made.request_handler, options, request_factory=made.request_factory, handler_cancellation=True)


class HttpServer:
    """Serves the gateway.

    Args:
        gateway: The handlers.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        reuse_port: Lets several processes of one host share the port.
        grace_s: Seconds for requests in flight when it stops.
    """

    def __init__(self, gateway: Gateway, *, host: str, port: int, reuse_port: bool, grace_s: float) -> None:
        self._gateway = gateway
        self._host = host
        self._port = port
        self._reuse_port = reuse_port
        self._runner = _Runner(gateway.app(), handle_signals=False, shutdown_timeout=grace_s)
        self._site: web.TCPSite | None = None

    async def start(self) -> int:
        """Listens.

        Returns:
            The port.

        Raises:
            InvalidArgumentError: The port cannot be had; the message names it.
        """
        await self._runner.setup()
        self._site = web.TCPSite(
            self._runner, self._host, self._port, reuse_port=self._reuse_port or None, backlog=1024
        )
        try:
            await self._site.start()
        except OSError as error:
            raise InvalidArgumentError(
                f"cannot listen on {self._host}:{self._port} ({error.strerror}): is the port taken? Set http_port"
            ) from error
        return int(self._runner.addresses[0][1])

    async def drain_and_stop(self) -> None:
        """Takes no new connections, tells those there are to go elsewhere, and lets requests in flight finish."""
        self._gateway.closing = True
        if self._site is not None:
            await self._site.stop()
        await self._runner.cleanup()
