"""The asyncio side of the seam in `transport`."""

from __future__ import annotations

from typing import Any, Protocol

import grpc
from grpc import aio

from fairlead.sdk.settings import Tls, channel_options
from fairlead.sdk.transport import Methods, Outgoing, StreamResponse, UnaryResponse, error_of


class AsyncMessageStream(Protocol):
    """A stream of answers, read from one task."""

    async def read(self) -> StreamResponse | None:
        """Waits for the next message; None at the end."""
        ...

    def cancel(self) -> None:
        """Ends the call now; the router stops the work."""
        ...


class AsyncTransport(Protocol):
    """What the asyncio client needs of a network."""

    async def unary(self, outgoing: Outgoing) -> UnaryResponse:
        """Sends one try and waits for its answer."""
        ...

    def stream(self, outgoing: Outgoing) -> AsyncMessageStream:
        """Sends one try; its answers are read from the stream."""
        ...

    async def close(self) -> None:
        """Closes every connection; calls in flight are cancelled."""
        ...


class GrpcAsyncStream:
    """A running call of grpc.aio.

    Args:
        call: The call.
    """

    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> StreamResponse | None:
        """Waits for the next message; None at the end."""
        try:
            message = await self._call.read()
        except grpc.RpcError as failure:
            raise error_of(failure) from None
        return None if message is aio.EOF else message  # type: ignore[attr-defined]  # the stubs lack it

    def cancel(self) -> None:
        """Ends the call now."""
        self._call.cancel()


class GrpcAsyncTransport:
    """Real connections, one per address, opened when first used, all on one event loop.

    Args:
        tls: How to encrypt; None for plain text.
    """

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls
        self._channels: dict[str, aio.Channel] = {}
        self._methods: dict[str, Methods] = {}

    def _of(self, address: str) -> Methods:
        if address not in self._methods:
            options = channel_options(self._tls)
            channel = (
                aio.secure_channel(address, self._tls.credentials(), options=options)
                if self._tls
                else aio.insecure_channel(address, options=options)
            )
            self._channels[address] = channel
            self._methods[address] = Methods(channel)
        return self._methods[address]

    async def unary(self, outgoing: Outgoing) -> UnaryResponse:
        """Sends one try and waits for its answer."""
        method = self._of(outgoing.address)[outgoing.method]
        try:
            response: UnaryResponse = await method(
                outgoing.request, timeout=outgoing.timeout_s, metadata=outgoing.metadata
            )
        except grpc.RpcError as failure:
            raise error_of(failure) from None
        return response

    def stream(self, outgoing: Outgoing) -> AsyncMessageStream:
        """Sends one try; its answers are read from the stream."""
        method = self._of(outgoing.address)[outgoing.method]
        return GrpcAsyncStream(method(outgoing.request, timeout=outgoing.timeout_s, metadata=outgoing.metadata))

    async def close(self) -> None:
        """Closes every connection."""
        channels = list(self._channels.values())
        self._channels.clear()
        self._methods.clear()
        for channel in channels:
            await channel.close(None)
