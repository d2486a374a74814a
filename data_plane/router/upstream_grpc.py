"""The relay on grpc.aio: a few multiplexed channels per replica, a timer between tokens, cancellation at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence

import grpc
import grpc.aio

from common.clock import NS_PER_S, Clock
from common.rpc import channel
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import (
    DeadlineExceededError,
    FairleadError,
    InternalError,
    InvalidArgumentError,
    Reason,
    RequestCancelledError,
    UnavailableError,
    from_rpc_error,
)

CHANNELS_PER_REPLICA = 2

# Each channel its own connection; without this grpc would share one among them.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)

# What grpc's transport says when the connection could not be made: nothing was started there.
_NOT_CONNECTED = ("failed to connect", "connection refused", "connections to all backends failing")


class Channels:
    """Open channels by replica address."""

    def __init__(self) -> None:
        self._by_address: dict[str, list[grpc.aio.Channel]] = {}
        self._turn = itertools.count()
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, address: str) -> grpc.aio.Channel:
        """A channel to this address, opened when it is first needed."""
        channels = self._by_address.get(address)
        if channels is None:
            channels = [channel(address, options=_OPTIONS) for _ in range(CHANNELS_PER_REPLICA)]
            self._by_address[address] = channels
        return channels[next(self._turn) % CHANNELS_PER_REPLICA]

    def keep_only(self, addresses: set[str], grace_s: float) -> None:
        """Closes the channels to other addresses, letting calls in flight finish for up to `grace_s` seconds."""
        for address in [address for address in self._by_address if address not in addresses]:
            for each in self._by_address.pop(address):
                task = asyncio.ensure_future(each.close(grace_s))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes everything at once."""
        channels = [each for channels in self._by_address.values() for each in channels]
        self._by_address.clear()
        for each in channels:
            await each.close(None)
        for task in list(self._closing):
            task.cancel()


class GrpcUpstream:
    """See Upstream.

    Args:
        channels: Connections.
        clock: Monotonic time.
        token_timeout_s: Longest silence after the first token.
    """

    def __init__(self, channels: Channels, clock: Clock, *, token_timeout_s: float) -> None:
        self._channels = channels
        self._clock = clock
        self._token_timeout_s = token_timeout_s

    async def generate(
        self,
        replica: engine_pb2.Replica,
        request: engine_pb2.EngineGenerateRequest,
        *,
        deadline_ns: int,
        metadata: Sequence[tuple[str, str]],
    ) -> AsyncGenerator[engine_pb2.EngineGenerateResponse, None]:
        """See Upstream."""
        left_s = (deadline_ns - self._clock.monotonic_ns()) / NS_PER_S
        if left_s <= 0:
            raise DeadlineExceededError("the deadline passed before a replica could start")
        stub = engine_pb2_grpc.EngineServiceStub(self._channels.get(replica.address))
        call = stub.Generate(request, timeout=left_s, metadata=tuple(metadata))
        silence = _SilenceTimer(call, self._token_timeout_s)
        try:
            async for message in call:
                silence.pause()
                yield message
                silence.resume()
        except grpc.aio.AioRpcError as failure:
            raise _translate(failure, silence.fired) from failure
        except asyncio.CancelledError:
            if silence.fired:
                raise _silent() from None
            raise
        finally:
            silence.stop()
            call.cancel()


class _SilenceTimer:
    """Cancels a call that falls silent after its first message.

    It runs only while the relay waits for the replica: a client that reads slowly is not a silent replica. One clock
    read per message, no timer per message.
    """

    def __init__(self, call: grpc.aio.Call, timeout_s: float) -> None:
        self._call = call
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._since_s = 0.0
        self._waiting = False
        self._handle: asyncio.TimerHandle | None = None
        self.fired = False

    def pause(self) -> None:
        self._waiting = False

    def resume(self) -> None:
        self._since_s = self._loop.time()
        self._waiting = True
        if self._handle is None:
            self._handle = self._loop.call_at(self._since_s + self._timeout_s, self._check)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _check(self) -> None:
        now_s = self._loop.time()
        due_s = self._since_s + self._timeout_s if self._waiting else now_s + self._timeout_s
        if now_s >= due_s:
            self.fired = True
            self._call.cancel()
        else:
            self._handle = self._loop.call_at(due_s, self._check)


def _silent() -> UnavailableError:
    return UnavailableError("the replica fell silent in the middle of the stream", reason=Reason.REPLICA_LOST)


def _translate(failure: grpc.aio.AioRpcError, silent: bool) -> FairleadError:
    """What a failed call means for the request."""
    if silent:
        return _silent()
    error = from_rpc_error(failure)
    if isinstance(error, UnavailableError) and error.reason is Reason.UNSPECIFIED:
        refused = any(sign in error.message.lower() for sign in _NOT_CONNECTED)
        error.reason = Reason.NOT_READY if refused else Reason.REPLICA_LOST
        return error
    if isinstance(error, RequestCancelledError):
        return UnavailableError("the replica cancelled the request", reason=Reason.REPLICA_LOST)
    if isinstance(error, InvalidArgumentError) and error.reason is Reason.UNSPECIFIED:
        # grpcio's own limits, not the replica's queue.
        return InternalError("the message to the replica exceeds a transport limit")
    return error
