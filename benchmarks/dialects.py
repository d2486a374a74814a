"""CPU per token from the network's bytes to a piece for the client, by the way a replica is reached.

    python -m benchmarks.dialects

What a server would send is fed to the router's own end of a connection, so system calls are left out; they are the same
per read whatever is read. Each read brings one token, as from an engine of its own connection, or sixteen, as on a
connection that many streams share.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from tritonclient.grpc import service_pb2

from benchmarks.report import Report
from common.clock import SystemClock
from common.triton.wire import Dialect, Reading, ServedModel
from data_plane.relay.grpc.client_end import ClientCall, ClientEnd, Reply
from data_plane.relay.grpc.framing import framed
from data_plane.relay.grpc.pieces import piece
from data_plane.relay.grpc.pool import LIMITS, PATIENCE
from data_plane.relay.grpc.status import HEAD
from data_plane.relay.http1.client import HttpPool
from data_plane.relay.http1.client_calls import HttpCall, Origin
from data_plane.relay.http1.client_connection import Connection
from data_plane.relay.http2 import frames
from data_plane.router.dialects.openai import OpenAIRunning
from data_plane.router.dialects.triton import TritonRunning
from data_plane.router.upstream_relay import AgentCall, Endings
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError

TOKENS = 16_000
ROUNDS = 9
_TEXTS = (" the", " answer", " is", " forty", "-two", ", of", " course", ".")


class Counter:
    """A receiver that counts."""

    def __init__(self) -> None:
        self.tokens = 0

    def on_piece(self, piece: bytes, tokens: int) -> None:
        """See Receiver."""
        self.tokens += tokens

    def on_message(self, message: engine_pb2.EngineGenerateResponse) -> None:
        """See Receiver."""

    def on_end(self, failure: FairleadError | None) -> None:
        """See Receiver."""


class Wire:
    """A transport that leads nowhere."""

    def write(self, data: bytes) -> None:
        """See asyncio.Transport."""

    abort = close = pause_reading = resume_reading = lambda self: None
    set_write_buffer_limits = get_extra_info = lambda self, *_, **__: None

    def is_closing(self) -> bool:
        """See asyncio.Transport."""
        return False


def _texts() -> Iterator[str]:
    while True:
        yield from _TEXTS


def _triton(text: str) -> bytes:
    message = service_pb2.ModelStreamInferResponse()
    inner = message.infer_response
    inner.model_name, inner.model_version, inner.id = "ensemble", "1", "0123456789abcdef01234567"
    inner.parameters["triton_final_response"].bool_param = False
    raw = len(text).to_bytes(4, "little") + text.encode()
    one = (1).to_bytes(4, "little")
    tensors = (("text_output", "BYTES", raw), ("num_input_tokens", "INT32", one), ("num_output_tokens", "INT32", one))
    for name, datatype, content in tensors:
        inner.outputs.add(name=name, datatype=datatype, shape=[1])
        inner.raw_output_contents.append(content)
    return cast(bytes, message.SerializeToString())


def _chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    event = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": "llama"}
    data = b"data: " + json.dumps(event | {"choices": [choice]}).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _reads(encode: Callable[[str], bytes], per_read: int) -> list[bytes]:
    texts = _texts()
    return [b"".join(encode(next(texts)) for _ in range(per_read)) for _ in range(TOKENS // per_read)]


def _timed(feed: Callable[[bytes], None], reads: list[bytes], renew: Callable[[], None] | None = None) -> float:
    begin = time.process_time()
    for data in reads:
        feed(data)
        if renew is not None:
            renew()
    return (time.process_time() - begin) / TOKENS * 1e6


def over_http2(make: Callable[[Counter], Reply], content: Callable[[str], bytes], per_read: int) -> float:
    """Microseconds per token of a stream on HTTP/2."""
    counter = Counter()
    end = ClientEnd(LIMITS, PATIENCE, message_bytes_max=1 << 24, freed=lambda _: None)
    end.endpoint.connection_made(cast(asyncio.BaseTransport, Wire()))
    call = ClientCall(b"", b"", make(counter))
    end.endpoint.data_received(frames.frame(frames.SETTINGS, 0, 0))
    call.begin(end)
    assert call.stream is not None
    number = call.stream.id
    end.endpoint.data_received(frames.frame(frames.HEADERS, frames.END_HEADERS, number, HEAD))
    reads = _reads(lambda text: frames.frame(frames.DATA, 0, number, framed(content(text))), per_read)
    spent_us = _timed(end.endpoint.data_received, reads)
    assert counter.tokens == TOKENS
    call.cancel()
    end.endpoint.connection_lost(None)
    return spent_us


def openai(per_read: int) -> float:
    """Microseconds per token of a stream of server-sent events."""
    counter, origin = Counter(), Origin("engine", 80)
    running = OpenAIRunning(counter, SystemClock(), SystemClock().monotonic_ns() + 10**12)
    connection = Connection(HttpPool(), origin)
    connection.connection_made(cast(asyncio.BaseTransport, Wire()))
    running.call = HttpCall(origin, b"", running)
    connection.carry(running.call)
    connection.data_received(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    spent_us = _timed(connection.data_received, _reads(_chunk, per_read))
    assert counter.tokens == TOKENS
    running.cancel()
    return spent_us


def agent(counter: Counter) -> AgentCall:
    """A request at an agent."""
    return AgentCall(counter, Endings())


def triton(counter: Counter) -> TritonRunning:
    """A request at a Triton."""
    model = ServedModel("ensemble", Dialect.ENSEMBLE, {}, frozenset(), {})
    deadline_ns = SystemClock().monotonic_ns() + 10**12
    return TritonRunning(counter, SystemClock(), deadline_ns, Reading(model, TOKENS, 0))


async def _main() -> None:
    ways: dict[str, Callable[[int], float]] = {
        "agent": lambda per_read: over_http2(agent, lambda text: piece(text.encode(), 1)[5:], per_read),
        "triton": lambda per_read: over_http2(triton, _triton, per_read),
        "openai": openai,
    }
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            for per_read in (1, 16):
                found.setdefault(f"{name}_{per_read}_per_read_us", []).append(way(per_read))
    report = Report("dialects")
    for name, values in found.items():
        report.add(name, statistics.median(values))
    report.publish()


def main() -> Any:
    """Measures and publishes."""
    asyncio.run(_main())


if __name__ == "__main__":
    main()
