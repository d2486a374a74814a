"""A client that says whatever a test wants it to, frame by frame."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field
from typing import Self

from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import END_HEADERS, PREFACE, Setting
from data_plane.relay.http2.header_blocks import HeaderDecoder, encoded
from tests.unit.relay.server.serving import path


@dataclass
class Answer:
    """What came on a stream.

    Attributes:
        heads: Blocks of headers, the last of them the trailers.
        data: Content.
        ended: The server has said all.
        reset: The code of a reset.
    """

    heads: list[dict[bytes, bytes]] = field(default_factory=list)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> bytes | None:
        return self.heads[-1].get(b"grpc-status") if self.heads else None


class RawClient:
    """See the module.

    Args:
        port: The server's.
        window: Bytes that it may send, on a stream and altogether.
    """

    def __init__(self, port: int, *, window: int = 1 << 20) -> None:
        self._port = port
        self._window = window
        self._decoder = HeaderDecoder(1 << 20)
        self._reading: asyncio.Task[None] | None = None
        self.answers: dict[int, Answer] = {}
        self.kinds: list[int] = []
        self.closed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.send(PREFACE + frames.settings([(Setting.INITIAL_WINDOW_SIZE, self._window)]))
        if self._window > frames.WINDOW_START:
            self.send(frames.window_update(0, self._window - frames.WINDOW_START))
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._reading is not None
        self._reading.cancel()
        self._writer.close()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def ask(self, stream_id: int, name: str = "Once", *, flags: int = 0, **headers: str | None) -> None:
        """Sends a request's headers; a header that is None is left out."""
        fields: dict[bytes, bytes | None] = {
            b":method": b"POST",
            b":scheme": b"http",
            b":path": path(name).encode(),
            b"te": b"trailers",
            b"content-type": b"application/grpc",
        }
        for key, value in headers.items():
            fields[key.replace("_", "-").replace("-method", ":method").encode()] = value.encode() if value else None
        block = encoded([(key, value) for key, value in fields.items() if value is not None])
        self.send(frames.frame(frames.HEADERS, END_HEADERS | flags, stream_id, block))

    def say(self, stream_id: int, content: bytes, flags: int = 0) -> None:
        """Sends content."""
        self.send(frames.frame(frames.DATA, flags, stream_id, content))

    def of(self, stream_id: int) -> Answer:
        return self.answers.setdefault(stream_id, Answer())

    async def _read(self) -> None:
        data = b""
        try:
            while chunk := await self._reader.read(1 << 16):
                data += chunk
                while len(data) >= frames.HEAD_BYTES:
                    head, flags, stream_id = struct.unpack_from(">IBI", data)
                    end = frames.HEAD_BYTES + (head >> 8)
                    if len(data) < end:
                        break
                    self._on_frame(head & 0xFF, flags, stream_id, data[frames.HEAD_BYTES : end])
                    data = data[end:]
        except ConnectionError:
            pass
        self.closed.set()

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.kinds.append(kind)
        answer = self.of(stream_id)
        if kind == frames.HEADERS:
            answer.heads.append(dict(self._decoder.decode(payload).pairs))
        elif kind == frames.DATA:
            answer.data += payload
        elif kind == frames.RST_STREAM:
            answer.reset = frames.read_u32(payload)
        elif kind == frames.PING and not flags & frames.ACK:
            self.send(frames.frame(frames.PING, frames.ACK, 0, payload))
        if kind in (frames.HEADERS, frames.DATA) and flags & frames.END_STREAM:
            answer.ended = True
