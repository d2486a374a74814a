"""Makes an upstream of one that is pulled: an async generator of messages, iterated by a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from common.rpc import as_fairlead_error
from data_plane.relay.grpc.framing import framed
from data_plane.router.upstream import Metadata, Receiver
from fairlead.engine.v1 import engine_pb2

Messages = AsyncGenerator[engine_pb2.EngineGenerateResponse, None]


class PulledUpstream(Protocol):
    """Sends one request to one replica."""

    def generate(
        self,
        replica: engine_pb2.Replica,
        request: engine_pb2.EngineGenerateRequest,
        *,
        deadline_ns: int,
        metadata: Metadata,
    ) -> Messages:
        """Streams a replica's answer. Closing the generator cancels the work there at once.

        Raises:
            FairleadError: As Receiver.on_end is told.
        """
        ...


class Pulled:
    """See Upstream.

    Args:
        upstream: What is iterated.
    """

    def __init__(self, upstream: PulledUpstream) -> None:
        self._upstream = upstream

    def start(
        self,
        replica: engine_pb2.Replica,
        request: bytes,
        *,
        deadline_ns: int,
        metadata: Metadata,
        receiver: Receiver,
    ) -> Pump:
        """See Upstream."""
        asked = engine_pb2.EngineGenerateRequest.FromString(request)
        return Pump(self._upstream.generate(replica, asked, deadline_ns=deadline_ns, metadata=metadata), receiver)


class Pump:
    """See Running.

    Args:
        messages: What is iterated.
        receiver: Whom it tells.
    """

    def __init__(self, messages: Messages, receiver: Receiver) -> None:
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self._cancelled = False
        self._task = asyncio.ensure_future(self._pump(messages, receiver))

    def cancel(self) -> None:
        """See Running."""
        self._cancelled = True
        self._task.cancel()

    def pause(self) -> None:
        """See Running."""
        self._may_go_on.clear()

    def resume(self) -> None:
        """See Running."""
        self._may_go_on.set()

    async def _pump(self, messages: Messages, receiver: Receiver) -> None:
        failure = None
        try:
            async with aclosing(messages):
                async for message in messages:
                    _tell(receiver, message)
                    await self._may_go_on.wait()
        except Exception as error:  # noqa: BLE001  # the boundary: whatever it was, the receiver must hear of the end
            failure = as_fairlead_error(error, "Upstream.generate")
        if not self._cancelled:
            receiver.on_end(failure)


def _tell(receiver: Receiver, message: engine_pb2.EngineGenerateResponse) -> None:
    if message.finish_reason or message.HasField("usage") or message.HasField("load"):
        receiver.on_message(message)
    else:
        receiver.on_piece(framed(message.SerializeToString()), message.output_tokens)
