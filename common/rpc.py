"""How Fairlead's processes speak gRPC: one server bootstrap, one error interceptor, one set of channel options."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace

from common.config import CommonConfig
from common.logs import get_logger
from common.mirror import Mirror
from common.telemetry import Telemetry, extract
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import (
    STATUS_DETAILS_KEY,
    FairleadError,
    InternalError,
    InvalidArgumentError,
    Reason,
    UnavailableError,
    to_status,
)

log = get_logger(__name__)

# A prompt of 128k tokens is about half a megabyte of text; four times that leaves room for any encoding.
MESSAGE_BYTES_MAX = 4 << 20
METADATA_BYTES_MAX = 16 << 10

_SERVER_OPTIONS = (
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)
# Keepalive alone does not notice a frozen peer while a stream is open; ping_timeout does (measured: 1.5 s, not 60 s).
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 1_500),
    ("grpc.http2.ping_timeout_ms", 1_500),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # also how long the first attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
)


def channel(address: str, *, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """Opens a channel to another process of the platform.

    Args:
        address: host:port.
        options: Further channel options; they win over the house's.

    Returns:
        A channel that connects lazily, notices a frozen peer within seconds and reconnects quickly.
    """
    return grpc.aio.insecure_channel(address, options=[*_CHANNEL_OPTIONS, *options])


async def fail(context: grpc.aio.ServicerContext[Any, Any], error: FairleadError) -> None:
    """Ends a call with an error of the tree and its details; keeps trailers already set.

    Args:
        context: The call.
        error: What went wrong.

    Raises:
        grpc.aio.AbortError: Always; that is how grpcio ends a call.
    """
    trailers = (*(context.trailing_metadata() or ()), (STATUS_DETAILS_KEY, to_status(error).SerializeToString()))
    await context.abort(error.code, error.message, trailers)


def as_fairlead_error(error: Exception, method: str) -> FairleadError:
    """Turns whatever a handler raised into an error of the tree; the unknown becomes INTERNAL with an id, logged.

    Args:
        error: What was raised.
        method: Where, for the log.

    Returns:
        The error itself where it is of the tree; else an InternalError that tells nothing but an incident id.
    """
    if isinstance(error, FairleadError):
        return error
    incident = secrets.token_hex(6)
    log.error("unexpected error", exc_info=error, method=method, incident=incident)
    return InternalError(
        f"internal error {incident}; the service's log has the details", metadata={"incident": incident}
    )


class _Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the type stubs only
    """Joins the caller's trace where there is one, and turns errors into statuses."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or (handler.request_streaming and not handler.response_streaming):
            return handler
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(handler.stream_stream, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(handler.unary_stream, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, method),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _span(self, context: Any, method: str) -> Any:
        parent = extract(context.invocation_metadata() or ())
        if not trace.get_current_span(parent).get_span_context().is_valid:
            return trace.use_span(trace.INVALID_SPAN)
        return self._tracer.start_as_current_span(method.lstrip("/"), parent, trace.SpanKind.SERVER)

    def _unary(self, behaviour: Any, method: str) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            try:
                with self._span(context, method):
                    return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  # the boundary: nothing may leak, everything is logged
                await fail(context, as_fairlead_error(error, method))

        return handle

    def _streaming(self, behaviour: Any, method: str) -> Any:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for response in behaviour(request, context):
                    yield response
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  # the boundary: nothing may leak, everything is logged
                await fail(context, as_fairlead_error(error, method))

        return handle


class GrpcServer:
    """A gRPC server with health, reflection, the error interceptor and a graceful end.

    Args:
        config: Where to listen.
        telemetry: Joins traces.
        reuse_port: Lets several processes of one host share the port.
        own_port: Listens on a free port as well, which no other process shares.
        interceptors: Further interceptors, run inside the error interceptor: what they raise is translated too.
        message_bytes_max: Largest request that is taken.
    """

    def __init__(
        self,
        config: CommonConfig,
        telemetry: Telemetry,
        *,
        reuse_port: bool = False,
        own_port: bool = False,
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
        message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        self._config = config
        own = (("grpc.max_receive_message_length", message_bytes_max), ("grpc.so_reuseport", int(reuse_port)))
        options = [*_SERVER_OPTIONS, *own]
        self._server = grpc.aio.server(interceptors=[_Interceptor(telemetry.tracer), *interceptors], options=options)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names: list[str] = [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        self._own_port = own_port
        self.address = ""
        self.own_address = ""
        """host:port that reaches this very process, once it listens; `address` may be shared."""

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: object, name: str) -> None:
        """Registers a service.

        Args:
            add_to_server: The generated add_…Servicer_to_server.
            servicer: Its implementation.
            name: Full service name, for health and reflection: "fairlead.quota.v1.RateLimiterService".
        """
        add_to_server(servicer, self._server)
        self._names.append(name)

    async def start(self) -> str:
        """Listens and says it is serving.

        Returns:
            host:port that others dial.

        Raises:
            InvalidArgumentError: The port cannot be had; the message names it.
        """
        reflection.enable_server_reflection([*self._names, reflection.SERVICE_NAME], self._server)
        target = f"{self._config.bind_host}:{self._config.grpc_port}"
        try:
            port = self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise InvalidArgumentError(f"cannot listen on {target}: is the port taken? Set grpc_port") from error
        own_port = self._server.add_insecure_port(f"{self._config.bind_host}:0") if self._own_port else port
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self.address = f"{self._config.reachable_host}:{port}"
        self.own_address = f"{self._config.reachable_host}:{own_port}"
        return self.address

    async def set_serving(self, serving: bool) -> None:
        """Answers health checks with SERVING or NOT_SERVING."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def drain_and_stop(self, grace_s: float) -> None:
        """Says it is not serving, lets calls in flight finish for up to `grace_s` seconds, then ends the rest."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


class LeaderClient:
    """Channels to whoever leads a service now.

    Args:
        leaders: Mirror of leaders/.
        service: Service name.
    """

    def __init__(self, leaders: Mirror[admin_pb2.ServiceInstance], service: str) -> None:
        self._leaders = leaders
        self._service = service
        self._address = ""
        self._channel: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self) -> grpc.aio.Channel:
        """Returns a channel to the leader.

        Raises:
            UnavailableError: Nobody leads, as far as is known.
        """
        instance = self._leaders.items.get(self._service)
        if instance is None:
            raise UnavailableError(
                f"no leader of {self._service} is known yet", reason=Reason.NOT_READY, retry_after_s=1.0
            )
        if instance.address != self._address or self._channel is None:
            self._retire()
            self._address, self._channel = instance.address, channel(instance.address)
        return self._channel

    def _retire(self) -> None:
        if self._channel is not None:
            task = asyncio.ensure_future(self._channel.close(5.0))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._channel = None

    async def close(self) -> None:
        """Closes the channel."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None
