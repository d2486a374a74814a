"""A small application on our HTTP/1.1 server for its tests, and a raw client of one connection."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

from data_plane.relay.http1.answers import lines
from data_plane.relay.http1.calls import HttpCall
from data_plane.relay.http1.limits import Limits, Patience
from data_plane.relay.http1.requests import Fault
from data_plane.relay.http1.server import Server

ANSWER_S = 20.0
"""An answer that takes longer is none: no machine is that slow, and nothing here waits for ever."""

TEXT = lines({"Content-Type": "text/plain"})


@dataclass
class Seen:
    """One call, as its server saw it; serves it by its path.

    /echo answers with the body, /held when the test says so, /early before the body, /stream with a chunk for each
    line of the body, /open begins to stream and leaves the rest to the test. There is nothing elsewhere.
    """

    call: HttpCall
    body: bytes | None = None
    fault: Fault | None = None
    gone: bool = False
    writable: int = 0

    def on_body(self, body: bytes) -> None:
        assert self.body is None
        assert self.fault is None
        assert not self.gone
        self.body = body
        if self.call.path == "/echo":
            self.call.respond(200, TEXT, body)
        elif self.call.path == "/stream":
            self.call.begin(200, TEXT)
            for line in body.splitlines():
                self.call.write(line)
            self.call.end()
        elif self.call.path == "/open":
            self.call.begin(200, TEXT)
        elif self.call.path != "/held":
            self.call.respond(404, TEXT, b"")

    def on_fault(self, fault: Fault) -> None:
        assert self.body is None
        assert self.fault is None
        assert not self.gone
        self.fault = fault
        self.call.respond(fault.status, TEXT, b"call: " + fault.message.encode())

    def on_gone(self) -> None:
        assert not self.gone
        self.gone = True

    def on_writable(self) -> None:
        assert not self.gone
        self.writable += 1


@dataclass
class App:
    """Remembers every call."""

    calls: list[Seen] = field(default_factory=list)

    def serve(self, call: HttpCall) -> Seen:
        seen = Seen(call)
        self.calls.append(seen)
        if call.path == "/early":
            call.respond(401, TEXT, b"no")
        return seen

    def malformed(self, fault: Fault) -> tuple[bytes, bytes]:
        return TEXT, b"line: " + fault.message.encode()


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def ask(self, path: str = "/echo", body: bytes = b"", *, headers: str = "", method: str = "POST") -> None:
        self.send(request(path, body, headers=headers, method=method))

    async def answer(self, *, head_only: bool = False) -> Answer:
        """The next answer."""
        async with asyncio.timeout(ANSWER_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            status = int(first.split(" ")[1])
            body = b""
            if status == 100 or head_only:
                pass
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                while chunk := await self.chunk():
                    body += chunk
            else:
                body = await self.reader.read()
            return Answer(status, headers, body)

    async def chunk(self) -> bytes:
        """The next chunk of a body; empty for the last."""
        async with asyncio.timeout(ANSWER_S):
            size = int(await self.reader.readline(), 16)
            data = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
            return data

    async def closed(self) -> bytes:
        """What is left until the server closes."""
        async with asyncio.timeout(ANSWER_S):
            return await self.reader.read()


@dataclass
class Lab:
    """A server and what it serves."""

    app: App
    server: Server
    port: int

    async def client(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))


def request(path: str = "/echo", body: bytes = b"", *, headers: str = "", method: str = "POST") -> bytes:
    """A request's bytes."""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@asynccontextmanager
async def serving(
    limits: Limits | None = None, patience: Patience | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Lab]:
    """The application on a free port."""
    app = App()
    server = Server(app, limits or Limits(), patience or Patience(), tls=tls)
    port = await server.listen("127.0.0.1", 0)
    try:
        yield Lab(app, server, port)
    finally:
        await server.drain_and_stop(0.0)
        assert server.connections == 0
        assert server.bodies_bytes == 0
