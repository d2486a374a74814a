"""How replicas are reached: by our own relay, whose pieces go from a replica to the client as the bytes they are."""

from __future__ import annotations

import asyncio
from typing import Final

from google.protobuf.message import DecodeError

from common.clock import Clock
from data_plane.relay.grpc.client_end import ClientCall
from data_plane.relay.grpc.framing import PREFIX_BYTES, framed
from data_plane.relay.grpc.pieces import tokens_of
from data_plane.relay.grpc.pool import Pool, timeout_header
from data_plane.relay.http2.header_blocks import literal
from data_plane.router.upstream import Metadata, Receiver
from data_plane.router.upstream_failures import meaning
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import DeadlineExceededError, FairleadError, Reason, UnavailableError

GENERATE: Final = f"/{engine_pb2.DESCRIPTOR.services_by_name['EngineService'].full_name}/Generate"


class RelayUpstream:
    """See Upstream.

    Args:
        pool: Connections to the agents.
        clock: Monotonic time.
    """

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._endings = Endings()

    def start(
        self,
        replica: engine_pb2.Replica,
        request: bytes,
        *,
        deadline_ns: int,
        metadata: Metadata,
        receiver: Receiver,
    ) -> AgentCall:
        """See Upstream."""
        this = AgentCall(receiver, self._endings)
        left_ns = deadline_ns - self._clock.monotonic_ns()
        if left_ns <= 0:
            late = DeadlineExceededError("the deadline passed before a replica could start")
            asyncio.get_running_loop().call_soon(this.on_end, late)
            return this
        more = timeout_header(left_ns)
        for name, value in metadata:
            more += literal(name.encode(), value.encode())
        this.call = self._pool.open(replica.address, GENERATE, more, framed(request), this)
        return this


class Endings:
    """Calls that have brought their last message and are left to end by themselves. One timer for all of them.

    Args:
        ending_s: How long a stream may outlive its last message.
    """

    def __init__(self, ending_s: float = 5.0) -> None:
        self._ending_s = ending_s
        self._loop: asyncio.AbstractEventLoop | None = None  # asking for it is a system call
        self._due_s: dict[ClientCall, float] = {}  # in this order
        self._armed = False

    def expect(self, call: ClientCall) -> None:
        """It will end; if not, it is cancelled."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        self._due_s[call] = loop.time() + self._ending_s
        if not self._armed:
            self._armed = True
            loop.call_later(self._ending_s, self._check)

    def ended(self, call: ClientCall) -> None:
        """It has."""
        self._due_s.pop(call, None)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._due_s:
            call, due_s = next(iter(self._due_s.items()))
            if due_s > now_s:
                loop.call_at(due_s, self._check)
                return
            del self._due_s[call]
            call.cancel()
        self._armed = False


class AgentCall:
    """A request at an agent; see Running and Reply.

    Args:
        receiver: Told of the answer.
        endings: Of all of them.

    Attributes:
        call: Its call; None where it was too late for one, and after its end.
    """

    __slots__ = ("_endings", "_finished", "_receiver", "call")

    def __init__(self, receiver: Receiver, endings: Endings) -> None:
        self._receiver: Receiver | None = receiver
        self._endings = endings
        self._finished = False
        self.call: ClientCall | None = None

    def on_message(self, message: bytes) -> None:
        """See Reply."""
        receiver = self._receiver
        if receiver is None:
            return
        tokens = tokens_of(message)
        if tokens >= 0:
            receiver.on_piece(message, tokens)
            return
        try:
            read = engine_pb2.EngineGenerateResponse.FromString(message[PREFIX_BYTES:])
        except DecodeError:
            self.cancel()
            receiver.on_end(UnavailableError("the replica sent what is no message", reason=Reason.REPLICA_LOST))
            return
        self._finished = bool(read.finish_reason)
        receiver.on_message(read)

    def on_end(self, failure: FairleadError | None) -> None:
        """See Reply."""
        call, self.call = self.call, None
        if self._finished and call is not None:
            self._endings.ended(call)
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.on_end(None if failure is None else meaning(failure))

    def cancel(self) -> None:
        """See Running. A stream that has brought its last message is left to end by itself, for a while."""
        self._receiver = None
        if self.call is not None:
            if self._finished:
                self._endings.expect(self.call)
            else:
                self.call.cancel()

    def pause(self) -> None:
        """See Running."""
        if self.call is not None:
            self.call.pause()

    def resume(self) -> None:
        """See Running."""
        if self.call is not None:
            self.call.resume()
