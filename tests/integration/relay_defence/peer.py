"""A client of HTTP/2 that sends what it is told, byte by byte, and writes down what comes."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Self

from hpack import Decoder

from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import END_HEADERS, END_STREAM, HEAD_BYTES, PREFACE, WINDOW_START
from data_plane.relay.http2.header_blocks import Pairs, encoded

REQUEST: Pairs = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/echo"),
    (b":authority", b"router"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
BLOCK = encoded(REQUEST)
PATIENCE_S = 30.0
"""Longest time anything is waited for; nothing here takes a second on a machine that is awake."""


def headers(stream_id: int, *, ended: bool = True, block: bytes = BLOCK, flags: int = END_HEADERS) -> bytes:
    """A HEADERS frame."""
    return frames.frame(frames.HEADERS, flags | (END_STREAM if ended else 0), stream_id, block)


def data(stream_id: int, content: bytes = b"token", *, ended: bool = False, flags: int = 0) -> bytes:
    """A DATA frame."""
    return frames.frame(frames.DATA, flags | (END_STREAM if ended else 0), stream_id, content)


def ping(payload: bytes = b"12345678", *, flags: int = 0, stream_id: int = 0) -> bytes:
    """A PING frame."""
    return frames.frame(frames.PING, flags, stream_id, payload)


@dataclass(frozen=True)
class Frame:
    """One that came."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


@dataclass
class Peer:
    """See the module.

    Attributes:
        frames: All that came, in order.
        closed: The other end has closed.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    frames: list[Frame] = field(default_factory=list)
    closed: bool = False
    decoder: Decoder = field(default_factory=Decoder)
    _tail: bytes = b""

    @classmethod
    async def connected(cls, port: int, *, receive_bytes: int = 0) -> Self:
        """Has said nothing yet.

        Args:
            port: Of the server.
            receive_bytes: Size of the socket's buffer for what comes; 0 for the usual.
        """
        plain = socket.socket()
        if receive_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=receive_bytes or 1 << 16)
        return cls(reader, writer)

    @classmethod
    async def greeted(cls, port: int, *, settings: tuple[tuple[int, int], ...] = ()) -> Self:
        """Has exchanged greetings."""
        peer = await cls.connected(port)
        await peer.send(PREFACE + frames.settings(settings))
        await peer.until(lambda: any(each.kind == frames.SETTINGS and each.flags & frames.ACK for each in peer.frames))
        await peer.send(frames.frame(frames.SETTINGS, frames.ACK, 0))
        return peer

    async def send(self, content: bytes) -> None:
        """Sends bytes; a connection that is closed takes anything."""
        try:
            self.writer.write(content)
            async with asyncio.timeout(PATIENCE_S):
                await self.writer.drain()
        except ConnectionError:
            pass

    async def until(self, done: object) -> None:
        """Reads until something is so, or the connection is closed.

        Args:
            done: Called without arguments after each read.
        """
        async with asyncio.timeout(PATIENCE_S):
            while not self.closed and not done():  # type: ignore[operator]
                await self._read()

    async def until_closed(self) -> None:
        """Reads until the other end closes."""
        await self.until(lambda: False)

    async def settled(self) -> None:
        """Reads until everything sent so far was dealt with: a PING was answered, or the connection is closed."""
        mark = b"settled?"
        before = sum(each.payload == mark for each in self.frames)
        await self.send(ping(mark))
        await self.until(lambda: sum(each.payload == mark for each in self.frames) > before)

    async def answered(self, stream_id: int) -> bool:
        """Reads until a stream ends.

        Returns:
            Whether it ended in order.
        """
        await self.until(lambda: self._ends(stream_id))
        return any(each.flags & END_STREAM for each in self._ends(stream_id))

    def _ends(self, stream_id: int) -> list[Frame]:
        messages = (frames.DATA, frames.HEADERS)
        return [
            each
            for each in self.frames
            if each.stream_id == stream_id
            and (each.kind == frames.RST_STREAM or (each.kind in messages and each.flags & END_STREAM))
        ]

    def reset_code(self, stream_id: int) -> int | None:
        """Why a stream was reset first; None where it was not."""
        for each in self.frames:
            if each.kind == frames.RST_STREAM and each.stream_id == stream_id:
                return frames.read_u32(each.payload)
        return None

    @property
    def goaway_code(self) -> int | None:
        """What the last GOAWAY said; None where none came."""
        for each in reversed(self.frames):
            if each.kind == frames.GOAWAY:
                return frames.read_u32(each.payload, 4)
        return None

    @property
    def goaway_text(self) -> str:
        """And why, for people."""
        for each in reversed(self.frames):
            if each.kind == frames.GOAWAY:
                return each.payload[8:].decode()
        return ""

    def content(self, stream_id: int) -> bytes:
        """What came on a stream."""
        return b"".join(e.payload for e in self.frames if e.kind == frames.DATA and e.stream_id == stream_id)

    def fields(self, stream_id: int) -> dict[bytes, bytes]:
        """Headers and trailers of a stream whose server keeps no table, as ours."""
        found: dict[bytes, bytes] = {}
        for each in self.frames:
            if each.kind == frames.HEADERS and each.stream_id == stream_id:
                found.update((bytes(n), bytes(v)) for n, v in Decoder().decode(each.payload, raw=True))
        return found

    async def close(self) -> None:
        """Closes the connection."""
        self.writer.close()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.writer.wait_closed()
        except (ConnectionError, TimeoutError):
            pass

    async def _read(self) -> None:
        try:
            came = await self.reader.read(1 << 18)
        except ConnectionError:
            came = b""
        if not came:
            self.closed = True
            return
        self._tail += came
        at = 0
        while len(self._tail) - at >= HEAD_BYTES:
            head, flags = frames.read_u32(self._tail, at), self._tail[at + 4]
            stream_id = frames.read_u32(self._tail, at + 5)
            end = at + HEAD_BYTES + (head >> 8)
            if end > len(self._tail):
                break
            self.frames.append(Frame(head & 0xFF, flags, stream_id, self._tail[at + HEAD_BYTES : end]))
            at = end
        self._tail = self._tail[at:]


def wide(stream_bytes: int = 1 << 30) -> tuple[tuple[int, int], ...]:
    """Settings of a client whose streams have large windows."""
    return ((frames.Setting.INITIAL_WINDOW_SIZE, stream_bytes),)


def widened() -> bytes:
    """And its connection."""
    return frames.window_update(0, (1 << 30) - WINDOW_START)
