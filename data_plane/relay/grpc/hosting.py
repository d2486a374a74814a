"""Hosts ordinary servicers of grpc.aio on the relay's server, through their generated add_…Servicer_to_server.

Each call is a task. That costs a hundred times what a call of the relay's own costs, and is for what is asked seldom:
health, reflection, the platform's own services. Errors and traces are as in `common.rpc`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import grpc
import grpc.aio
from opentelemetry import trace

from common.rpc import as_fairlead_error
from common.telemetry import extract
from data_plane.relay.grpc.calls import Route, ServerCall
from data_plane.relay.grpc.framing import framed
from data_plane.relay.grpc.hosted_context import HostedContext
from data_plane.relay.grpc.status import Code, RpcFaultError

_EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
_UNREAD_MAX: Final = 16
"""Messages that wait for a servicer before no more are taken from the network."""


class Host:
    """What a generated add_…Servicer_to_server takes for a server.

    Args:
        tracer: Joins the callers' traces.

    Attributes:
        routes: The methods, by path.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self.routes: dict[bytes, Route] = {}
        self._standing = False
        self._tracer = tracer
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: object, *, standing: bool = False) -> None:
        """Takes a servicer's methods, but for those that are served here already.

        Args:
            add_to_server: The generated add_…Servicer_to_server.
            servicer: Its implementation.
            standing: Whether its calls last as long as clients like.
        """
        self._standing = standing
        add_to_server(servicer, self)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Nothing: the same methods come as registered ones."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Takes a service's methods."""
        for name, handler in handlers.items():
            method = _Method(handler, self._tracer, self._tasks)
            route = Route(method, handler.request_streaming, standing=self._standing)
            self.routes.setdefault(f"/{service}/{name}".encode(), route)


class _Method:
    def __init__(
        self, handler: grpc.RpcMethodHandler[Any, Any], tracer: trace.Tracer, tasks: set[asyncio.Task[None]]
    ) -> None:
        self.handler = handler
        self.tracer = tracer
        self.tasks = tasks

    def __call__(self, call: ServerCall) -> _Hosted:
        return _Hosted(self, call)


class _Hosted:
    """Serves one call by a task."""

    def __init__(self, method: _Method, call: ServerCall) -> None:
        self._handler: Any = method.handler
        self._tracer = method.tracer
        self._call = call
        self._messages: deque[bytes] = deque()
        self._half_closed = False
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._context = HostedContext(call, self._read, self._write)
        self._task = asyncio.get_running_loop().create_task(self._run())
        method.tasks.add(self._task)
        self._task.add_done_callback(method.tasks.discard)
        self._task.add_done_callback(self._context.run_done_callbacks)

    # --- Served

    def on_message(self, message: bytes) -> None:
        self._messages.append(message)
        if len(self._messages) >= _UNREAD_MAX:
            self._call.hold()
        self._changed.set()

    def on_half_closed(self) -> None:
        self._half_closed = True
        self._changed.set()

    def on_gone(self) -> None:
        self._task.cancel()

    def on_writable(self) -> None:
        self._writable.set()

    # --- the task

    async def _read(self) -> Any:
        while not self._messages:
            if self._half_closed:
                return _EOF
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        if not self._messages:
            self._call.release()
        deserialize = self._handler.request_deserializer
        try:
            return deserialize(message) if deserialize is not None else message
        except Exception as error:
            raise RpcFaultError(Code.INTERNAL, "the request is not a message of this method") from error

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self._read()) is not _EOF:
            yield message

    async def _write(self, response: Any) -> None:
        serialize = self._handler.response_serializer
        self._call.send(framed(serialize(response) if serialize is not None else response))
        while self._call.blocked:
            self._writable.clear()
            await self._writable.wait()

    async def _run(self) -> None:
        call, context = self._call, self._context
        try:
            await self._serve()
        except asyncio.CancelledError:
            raise
        except grpc.aio.AbortError:
            call.end(context.status())
        except RpcFaultError as error:
            call.fail(error)
        except Exception as error:  # noqa: BLE001  # the boundary: nothing may leak, everything is logged
            if isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
                call.end(context.status())  # the generated servicer's own word for a method that nobody wrote
                return
            call.fail(as_fairlead_error(error, call.method), context.trailers())
        else:
            call.end(context.status())

    async def _serve(self) -> None:
        handler, context = self._handler, self._context
        if handler.response_streaming:
            if handler.request_streaming:
                responses = handler.stream_stream(self._requests(), context)
            else:
                responses = handler.unary_stream(await self._read(), context)
            if inspect.isawaitable(responses):
                await responses  # it calls context.write itself
                return
            async for response in responses:
                await self._write(response)
            return
        if handler.request_streaming:
            response = await handler.stream_unary(self._requests(), context)
        else:
            request = await self._read()
            with self._span():
                response = await handler.unary_unary(request, context)
        if context.ok:
            await self._write(response)

    def _span(self) -> Any:
        parent = extract(self._context.invocation_metadata())
        if not trace.get_current_span(parent).get_span_context().is_valid:
            return trace.use_span(trace.INVALID_SPAN)
        return self._tracer.start_as_current_span(self._call.method.lstrip("/"), parent, trace.SpanKind.SERVER)
