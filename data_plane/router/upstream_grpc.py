"""The reference relay, on grpc.aio: a few multiplexed channels per replica, cancellation at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence

import grpc
import grpc.aio

from common.clock import NS_PER_S, Clock
from common.rpc import channel
from data_plane.router.upstream_failures import meaning
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import DeadlineExceededError, from_rpc_error

CHANNELS_PER_REPLICA = 2

# Each channel its own connection; without this grpc would share one among them.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


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
    """See PulledUpstream.

    Args:
        channels: Connections.
        clock: Monotonic time.
    """

    def __init__(self, channels: Channels, clock: Clock) -> None:
        self._channels = channels
        self._clock = clock

    async def generate(
        self,
        replica: engine_pb2.Replica,
        request: engine_pb2.EngineGenerateRequest,
        *,
        deadline_ns: int,
        metadata: Sequence[tuple[str, str]],
    ) -> AsyncGenerator[engine_pb2.EngineGenerateResponse, None]:
        """See PulledUpstream."""
        left_s = (deadline_ns - self._clock.monotonic_ns()) / NS_PER_S
        if left_s <= 0:
            raise DeadlineExceededError("the deadline passed before a replica could start")
        stub = engine_pb2_grpc.EngineServiceStub(self._channels.get(replica.address))
        call = stub.Generate(request, timeout=left_s, metadata=tuple(metadata))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as failure:
            raise meaning(from_rpc_error(failure)) from failure
        finally:
            call.cancel()
