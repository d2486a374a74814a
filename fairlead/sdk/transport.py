"""The seam between decisions and the network: what a driver needs of a transport, and the one of grpcio.

A transport raises errors of `fairlead.errors` and nothing else (asyncio's own cancellation aside); a test can put a
small class of its own in the place of `GrpcTransport`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grpc

from fairlead.errors import FairleadError, RpcFailure, from_rpc_error
from fairlead.inference.v1 import decision_pb2, inference_pb2, ticket_pb2
from fairlead.inference.v1.decision_pb2_grpc import DecisionServiceStub
from fairlead.inference.v1.inference_pb2_grpc import InferenceServiceStub
from fairlead.inference.v1.ticket_pb2_grpc import TicketServiceStub
from fairlead.sdk.settings import Tls, channel_options

Method = Literal["Generate", "ListModels", "StreamGenerate", "GetDecision", "IssueTicket", "ReturnTicket", "Redeem"]
Request = (
    inference_pb2.GenerateRequest
    | inference_pb2.ListModelsRequest
    | inference_pb2.ReturnTicketRequest
    | ticket_pb2.RedeemRequest
    | decision_pb2.GetDecisionRequest
)
UnaryResponse = (
    inference_pb2.GenerateResponse
    | inference_pb2.ListModelsResponse
    | inference_pb2.Ticket
    | inference_pb2.ReturnTicketResponse
    | decision_pb2.GetDecisionResponse
)
StreamResponse = inference_pb2.StreamGenerateResponse

TRAILER_PREFIX = "fairlead-"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One try, ready to be sent."""

    address: str
    """host:port of the router, or of a replica for "Redeem"."""
    method: Method
    """Method of InferenceService or of DecisionService; "Redeem" is TicketService.StreamGenerate."""
    request: Request
    """The message."""
    metadata: tuple[tuple[str, str], ...]
    """Authorization and trace context."""
    timeout_s: float | None
    """Seconds until the deadline; None for no limit."""


class Methods:
    """The methods of a router's or replica's services on one channel, by name.

    Args:
        channel: Of grpcio, synchronous or not.
    """

    def __init__(self, channel: Any) -> None:
        inference, decisions = InferenceServiceStub(channel), DecisionServiceStub(channel)
        self._methods: dict[Method, Any] = {
            "Generate": inference.Generate,
            "ListModels": inference.ListModels,
            "StreamGenerate": inference.StreamGenerate,
            "GetDecision": decisions.GetDecision,
            "IssueTicket": inference.IssueTicket,
            "ReturnTicket": inference.ReturnTicket,
            "Redeem": TicketServiceStub(channel).StreamGenerate,
        }

    def __getitem__(self, name: Method) -> Any:
        return self._methods[name]


class MessageStream(Protocol):
    """A stream of answers, read from one thread."""

    def read(self) -> StreamResponse | None:
        """Waits for the next message; None at the end."""
        ...

    def cancel(self) -> None:
        """Ends the call now; the router stops the work."""
        ...


class Transport(Protocol):
    """What the synchronous client needs of a network."""

    def unary(self, outgoing: Outgoing) -> UnaryResponse:
        """Sends one try and waits for its answer."""
        ...

    def stream(self, outgoing: Outgoing) -> MessageStream:
        """Sends one try; its answers are read from the stream."""
        ...

    def close(self) -> None:
        """Closes every connection; calls in flight are cancelled."""
        ...


def error_of(failure: RpcFailure) -> FairleadError:
    """Turns grpcio's error into one of ours, with the router's trailers in its metadata.

    Args:
        failure: The failed call.

    Returns:
        The error; `metadata` also holds trailers such as `settled_milli_mu` and `replica`, so that what a broken
        stream cost is known.
    """
    error = from_rpc_error(failure)
    for key, value in failure.trailing_metadata() or ():
        if key.startswith(TRAILER_PREFIX) and isinstance(value, str):
            error.metadata.setdefault(key.removeprefix(TRAILER_PREFIX).replace("-", "_"), value)
    return error


class GrpcStream:
    """A running call of grpcio.

    Args:
        call: The call, also the iterator of its messages.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._messages: Iterator[StreamResponse] = iter(call)

    def read(self) -> StreamResponse | None:
        """Waits for the next message; None at the end."""
        try:
            return next(self._messages, None)
        except grpc.RpcError as failure:
            raise error_of(failure) from None

    def cancel(self) -> None:
        """Ends the call now."""
        self._call.cancel()


class GrpcTransport:
    """Real connections, one per address, opened when first used and shared by all threads.

    Args:
        tls: How to encrypt; None for plain text.
    """

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.Channel] = {}
        self._methods: dict[str, Methods] = {}
        self._lock = threading.Lock()

    def _of(self, address: str) -> Methods:
        with self._lock:
            if address not in self._methods:
                options = channel_options(self._tls)
                channel = (
                    grpc.secure_channel(address, self._tls.credentials(), options=options)
                    if self._tls
                    else grpc.insecure_channel(address, options=options)
                )
                self._channels[address] = channel
                self._methods[address] = Methods(channel)
            return self._methods[address]

    def unary(self, outgoing: Outgoing) -> UnaryResponse:
        """Sends one try and waits for its answer."""
        method = self._of(outgoing.address)[outgoing.method]
        try:
            response: UnaryResponse = method(outgoing.request, timeout=outgoing.timeout_s, metadata=outgoing.metadata)
        except grpc.RpcError as failure:
            raise error_of(failure) from None
        return response

    def stream(self, outgoing: Outgoing) -> MessageStream:
        """Sends one try; its answers are read from the stream."""
        method = self._of(outgoing.address)[outgoing.method]
        return GrpcStream(method(outgoing.request, timeout=outgoing.timeout_s, metadata=outgoing.metadata))

    def close(self) -> None:
        """Closes every connection."""
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()
            self._methods.clear()
