"""The HTTP handlers: OpenAI's chat and completion endpoints over the router's flow."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Final

from aiohttp import web

from common.clock import NS_PER_S, Clock
from common.rpc import as_fairlead_error
from common.telemetry import trace_fields
from data_plane.gateway import errors, limits, render, translate
from data_plane.router.decision_service import Decisions
from data_plane.router.exchange import Call, Delta, Finished, Receipt
from data_plane.router.flow import Flow
from data_plane.router.life import Exchange
from data_plane.router.tables import Tables
from fairlead.errors import FairleadError, InternalError, InvalidArgumentError
from fairlead.inference.v1 import decision_pb2
from fairlead.inference.v1 import inference_pb2 as pb

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_JSON: Final = "application/json"
_REQUEST_ID: Final = "x-request-id"
_KNOWN_ID: Final = web.RequestKey("known_id", str)
_ID_BYTES: Final = 12
_ECHO_BYTES_MAX: Final = 128


class Gateway:
    """OpenAI's API.

    Args:
        flow: Runs requests.
        tables: For the list of models.
        clock: Wall time for `created`.
        decisions: Explains requests.
        body_bytes_max: Largest request body.
    """

    def __init__(self, flow: Flow, tables: Tables, clock: Clock, *, decisions: Decisions, body_bytes_max: int) -> None:
        self._flow = flow
        self._tables = tables
        self._clock = clock
        self._decisions = decisions
        self._body_bytes_max = body_bytes_max
        self.closing = False

    def app(self) -> web.Application:
        """The application, to be run by a server."""
        app = web.Application(client_max_size=self._body_bytes_max, middlewares=[self._guard])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_get("/v1/requests/{id:.+}/decision", self._decision)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{id:.+}", self._model)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turns every error into OpenAI's shape."""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            return self._plain_error(request, error)
        except ConnectionResetError:
            raise
        except Exception as error:  # noqa: BLE001  # the boundary: nothing may leak, everything is logged
            response = self._error(request, as_fairlead_error(error, request.path))
        if self.closing and not response.prepared:
            response.force_close()
        return response

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        with self._counted(request):
            wanted, body = translate.chat(await request.read(), request.headers)
        exchange = self._open(request, wanted)
        if body.stream:
            return await self._stream(request, exchange, chat=True, include_usage=translate.wants_usage(body))
        return await self._whole(request, exchange, chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        with self._counted(request):
            wanted, body = translate.completion(await request.read(), request.headers)
        exchange = self._open(request, wanted)
        if body.stream:
            return await self._stream(request, exchange, chat=False, include_usage=translate.wants_usage(body))
        return await self._whole(request, exchange, chat=False)

    @contextlib.contextmanager
    def _counted(self, request: web.Request) -> Iterator[None]:
        """Counts a request that is refused before the flow sees it."""
        try:
            yield
        except FairleadError as error:
            self._refuse(request, error)
            raise
        except web.HTTPRequestEntityTooLarge:
            self._refuse(request, InvalidArgumentError(f"the body is larger than {self._body_bytes_max} bytes"))
            raise

    def _refuse(self, request: web.Request, error: FairleadError) -> None:
        request[_KNOWN_ID] = self._flow.refuse(error, request.headers.get("Authorization")).request_id

    def _open(self, request: web.Request, wanted: pb.GenerateRequest) -> Exchange:
        call = Call(wanted, request.headers.get("Authorization"), None, trace_fields(request.headers.items()))
        exchange = self._flow.open(call)
        request[_KNOWN_ID] = exchange.receipt.request_id
        return exchange

    def _shape(self, receipt: Receipt, *, chat: bool) -> render.Shape:
        return render.Shape(chat=chat, receipt=receipt, created_s=self._clock.wall_ns() // NS_PER_S)

    async def _whole(self, request: web.Request, exchange: Exchange, *, chat: bool) -> web.StreamResponse:
        texts: list[str] = []
        finished: Finished | None = None
        try:
            async with aclosing(exchange.events()) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        texts.append(event.text)
                    else:
                        finished = event
        except FairleadError as error:
            return self._error(request, error, exchange.receipt)
        if finished is None:
            raise InternalError("the answer has no end")
        body = self._shape(exchange.receipt, chat=chat).whole("".join(texts), finished)
        headers = limits.receipt_headers(exchange.receipt, final=True) | self._echo(request)
        return web.Response(body=body, content_type=_JSON, headers=headers)

    async def _stream(
        self, request: web.Request, exchange: Exchange, *, chat: bool, include_usage: bool
    ) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        stream: render.Stream | None = None
        try:
            async with aclosing(exchange.events()) as events:
                async for event in events:
                    if response is None or stream is None:
                        # Nothing is sent before the first token: until then a failed replica is replaced unseen.
                        response = await self._begin(request, exchange.receipt)
                        stream = self._shape(exchange.receipt, chat=chat).stream(include_usage=include_usage)
                    # Waits while the client does not read, so that no answer piles up here.
                    await response.write(stream.piece(event.text) if isinstance(event, Delta) else stream.end(event))
        except FairleadError as error:
            if response is None:
                return self._error(request, error, exchange.receipt)
            # The client may be gone by now; there is nobody left to tell.
            with contextlib.suppress(ConnectionResetError):
                await response.write(render.error_event(errors.body(error, request_id=request.get(_KNOWN_ID))))
        if response is None:
            raise InternalError("the answer has no end")
        await response.write_eof()
        return response

    async def _begin(self, request: web.Request, receipt: Receipt) -> web.StreamResponse:
        headers = limits.receipt_headers(receipt, final=False) | self._echo(request)
        headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        if self.closing:
            response.force_close()
        await response.prepare(request)
        return response

    async def _models(self, request: web.Request) -> web.StreamResponse:
        caller = self._flow.admission.authenticate(request.headers.get("Authorization"))
        data = [render.model(record) for record in self._tables.models_of(caller.tenant_id)]
        return self._found(request, render.encode({"object": "list", "data": data}))

    async def _model(self, request: web.Request) -> web.StreamResponse:
        caller = self._flow.admission.authenticate(request.headers.get("Authorization"))
        record = self._tables.model(caller.tenant_id, request.match_info["id"])
        return self._found(request, render.encode(render.model(record)))

    async def _decision(self, request: web.Request) -> web.StreamResponse:
        wanted = decision_pb2.GetDecisionRequest(request_id=request.match_info["id"])
        found = await self._decisions.explain(wanted, request.headers.get("Authorization"))
        return self._found(request, render.message(found))

    def _found(self, request: web.Request, body: bytes) -> web.Response:
        return web.Response(body=body, content_type=_JSON, headers=self._echo(request))

    def _error(self, request: web.Request, error: FairleadError, receipt: Receipt | None = None) -> web.Response:
        headers = errors.headers(error) | self._named(request)
        if receipt is not None:
            headers |= limits.receipt_headers(receipt, final=True)
        body = errors.body(error, request_id=request.get(_KNOWN_ID))
        return web.Response(body=body, status=error.http_status, content_type=_JSON, headers=headers)

    def _plain_error(self, request: web.Request, error: web.HTTPException) -> web.Response:
        """Errors of HTTP itself: unknown path, wrong method, body too large."""
        status, message, code = error.status, error.reason, "http_error"
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        if status == 404:
            message = f"there is nothing at {request.method} {request.path[:200]}; see /v1/models, /v1/chat/completions"
            code = "unknown_url"
        elif status == 405:
            message, code = (
                f"{request.method} is not allowed here; use {headers.get('Allow', '')}",
                "method_not_allowed",
            )
        elif status == 413:
            message, code = f"the body is larger than {self._body_bytes_max} bytes", "body_too_large"
        headers |= self._named(request)
        request_id = request.get(_KNOWN_ID)
        body = errors.render(message, status=status, code=code, reason="INVALID_ARGUMENT", request_id=request_id)
        response = web.Response(body=body, status=status, content_type=_JSON, headers=headers)
        if status == 413:
            response.force_close()
        return response

    @staticmethod
    def _echo(request: web.Request) -> dict[str, str]:
        """The client's own correlation id, or the platform's request id where it sent none."""
        sent = request.headers.get(_REQUEST_ID, "")
        if sent and len(sent) <= _ECHO_BYTES_MAX and sent.isascii() and sent.isprintable():
            return {_REQUEST_ID: sent}
        return {_REQUEST_ID: request.get(_KNOWN_ID) or secrets.token_hex(_ID_BYTES)}

    def _named(self, request: web.Request) -> dict[str, str]:
        """What names an error: the same, and where it was a request for text the id under which to ask why."""
        known = request.get(_KNOWN_ID)
        return self._echo(request) | ({limits.REQUEST_ID: known} if known else {})
