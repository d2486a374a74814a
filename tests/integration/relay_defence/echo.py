"""The relay's HTTP/2 on a real socket, with a program that answers every request with its content."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from data_plane.relay.http2.connection import Connection
from data_plane.relay.http2.endpoint import Endpoint, Patience
from data_plane.relay.http2.header_blocks import Fields, encoded
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.stream import Stream

HEAD = encoded(((b":status", b"200"), (b"content-type", b"application/grpc")))
TRAILERS = encoded(((b"grpc-status", b"0"),))


class Echo:
    """One connection's; content is answered once the request has ended."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.content: dict[int, list[bytes]] = {}
        self.resets: list[int] = []

    def on_head(self, stream: Stream, _fields: Fields, ended: bool) -> None:
        self.content[stream.id] = []
        if ended:
            self._answer(stream)

    def on_data(self, stream: Stream, data: bytes, ended: bool) -> None:
        self.content[stream.id].append(data)
        if ended:
            self._answer(stream)

    def on_trailers(self, stream: Stream, _fields: Fields) -> None:
        self._answer(stream)

    def on_reset(self, stream: Stream, code: int) -> None:
        self.resets.append(code)
        self.content.pop(stream.id, None)

    def on_sent(self, stream: Stream) -> None: ...

    def on_pong(self, payload: bytes) -> None: ...

    def _answer(self, stream: Stream) -> None:
        assert self.connection is not None
        self.connection.send_head(stream, HEAD)
        content = b"".join(self.content.pop(stream.id))
        if content:
            self.connection.send_data(stream, content)
        self.connection.end(stream, TRAILERS)


@dataclass
class EchoServer:
    """Where it listens, and its connections."""

    port: int = 0
    endpoints: list[Endpoint] = field(default_factory=list)
    echoes: list[Echo] = field(default_factory=list)


@asynccontextmanager
async def echoing(limits: Limits | None = None, patience: Patience | None = None) -> AsyncIterator[EchoServer]:
    """The echo on a free port."""
    serving = EchoServer()

    def connected() -> Endpoint:
        echo = Echo()
        endpoint = Endpoint(echo, limits or Limits(), patience or Patience(), client=False)
        echo.connection = endpoint.connection
        serving.endpoints.append(endpoint)
        serving.echoes.append(echo)
        return endpoint

    server = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0)
    serving.port = server.sockets[0].getsockname()[1]
    try:
        yield serving
    finally:
        server.close()
        for endpoint in serving.endpoints:
            endpoint.connection.lost()
            if endpoint.transport is not None:
                endpoint.transport.abort()
