"""Attacks that go on: another client is served meanwhile, memory stays bounded, and nothing is kept afterwards.

Each attacker comes again as soon as it is given up, some times, with the limits that the server has by default.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from data_plane.relay.grpc.framing import PREFIX_BYTES, framed
from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import CONTINUATION, PADDED, PREFACE, Setting
from data_plane.relay.http2.header_blocks import encoded, literal
from tests.integration.relay_defence.calls import ONCE, SILENCE, THRICE, begin, block, call, grpc_status
from tests.integration.relay_defence.peer import REQUEST, Peer, data, headers, ping
from tests.integration.relay_defence.server_process import PARTS_BYTES_MAX
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]
ATTACKERS = 3
TIMES = 2
GROWTH_BYTES_MAX = 100 << 20
"""Memory that an attack may cost beside parts of messages; an unbounded one costs that in a second."""

UNREAD_S = 0.5

BETWEEN_MS_MAX = 1_000
"""CPU that the server spends on others between two answers to a client that asks all the time, in the middle."""

SPENT_MS_MAX = 5_000
"""And on the whole attack. It is the server's own time: how busy the machine is, does not count."""

DONE = b"said all"
SEEN_MAX = 3_000

GREETING = PREFACE + frames.settings(())
WIDE = PREFACE + frames.settings([(Setting.INITIAL_WINDOW_SIZE, 1 << 30)]) + frames.window_update(0, 1 << 30)
LARGE = framed(1_000_000 * b"x")
WRONG = block("Once", (b"authorization", b"wrong"))
STATS = encoded(tuple((n, v) if n != b":path" else (n, b"/test.Stats/Get") for n, v in REQUEST))


def _ids(count: int) -> range:
    return range(1, 2 * count + 1, 2)


def _huffman(plain: bytes) -> bytes:
    coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(plain)
    length = bytearray((0xFF,))
    left = len(coded) - 0x7F
    while left >= 0x80:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    length.append(left)
    return bytes(length) + coded


def _bomb() -> bytes:
    table = headers(1, block=ONCE + b"\x40" + literal(b"x-a", 3_000 * b"v")[1:])
    return table + b"".join(headers(n, block=16_000 * b"\xbe") for n in range(3, 100, 2))


ATTACKS: dict[str, bytes] = {
    "rapid reset": GREETING + b"".join(begin(n) + frames.rst_stream(n, 8) for n in _ids(2_000)),
    "made to be reset": GREETING + b"".join(begin(n) + frames.window_update(n, 0) for n in _ids(2_000)),
    "calls at once": GREETING + b"".join(begin(n) for n in _ids(2_000)),
    "calls that are refused": GREETING + b"".join(call(n, WRONG) for n in _ids(1_000)),
    "header blocks without end": GREETING + headers(1, flags=0) + 100 * frames.frame(CONTINUATION, 0, 1, 10_000 * b"x"),
    "pings": GREETING + 20_000 * ping(),
    "settings at many calls": GREETING
    + b"".join(begin(n) for n in _ids(900))
    + 60 * frames.settings([(Setting.INITIAL_WINDOW_SIZE, n) for n in range(2_700)]),
    "unknown frames": GREETING + 1_100 * frames.frame(0x99, 0, 0, 16_384 * b"x"),
    "header references": GREETING + _bomb(),
    "long Huffman codes": GREETING
    + b"".join(headers(n, block=ONCE + b"\x00\x03x-a" + _huffman(14_000 * b"0")) for n in _ids(60)),
    "header lists": GREETING + b"".join(headers(n, block=ONCE + 400 * b"\x00\x00\x00") for n in _ids(100)),
    "a window of a byte at a time": PREFACE
    + frames.settings([(Setting.INITIAL_WINDOW_SIZE, 0)])
    + b"".join(call(n, THRICE, 5_000 * b"x") for n in _ids(100))
    + b"".join(100 * frames.window_update(n, 1) for n in _ids(100)),
    "data of a byte at a time": GREETING + begin(1) + data(1, LARGE[:PREFIX_BYTES]) + 10_000 * data(1, b"x"),
    "data that is all padding": GREETING + begin(1) + 20_000 * data(1, b"\x10" + 16 * b"\0", flags=PADDED),
    "parts of messages": GREETING + b"".join(begin(n) + data(n, LARGE[:16_000]) for n in _ids(990)),
    "answers that nobody reads": WIDE + b"".join(call(n, THRICE, 10_000 * b"x") for n in _ids(2_000)),
    "what is no HTTP/2": GREETING + b"GET / HTTP/1.1\r\n\r\n" * 10_000,
}  # fmt: skip


class Target:
    """The server that is attacked, and another client of it."""

    def __init__(self, port: int, peer: Peer) -> None:
        self.port = port
        self.peer = peer
        self._next_id = 1

    async def asks(self, which: bytes = ONCE) -> bytes:
        """One unary call's answer."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        await self.peer.send(call(stream_id, which))
        assert await self.peer.answered(stream_id)
        assert grpc_status(self.peer, stream_id) == 0
        answer = self.peer.content(stream_id)[PREFIX_BYTES:]
        self.peer.frames.clear()
        await self.peer.send(frames.window_update(0, len(answer) + PREFIX_BYTES))
        return answer

    async def stats(self) -> dict[str, int]:
        told: dict[str, int] = json.loads(await self.asks(STATS))
        return told


@pytest.fixture(scope="module")
def process() -> Iterator[int]:
    """The server's port."""
    command = (sys.executable, "-m", "tests.integration.relay_defence.server_process")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        yield int(started.stdout.readline())
        assert started.poll() is None
        started.kill()


@pytest.fixture
async def target(process: int) -> AsyncIterator[Target]:
    peer = await Peer.greeted(process)
    yield Target(process, peer)
    await peer.close()


async def _attack(port: int, content: bytes, *, reads: bool) -> None:
    """Connects, says it all, waits until that is dealt with, and comes again."""
    for _ in range(TIMES):
        peer = await Peer.connected(port, receive_bytes=0 if reads else 4_096)
        saying = asyncio.create_task(_says(peer, content + ping(DONE)))
        if reads:
            await peer.until(lambda peer=peer: any(each.payload == DONE for each in peer.frames[-SEEN_MAX:]))
        else:
            await asyncio.wait((saying,), timeout=UNREAD_S)
        saying.cancel()
        peer.writer.transport.abort()


async def _says(peer: Peer, content: bytes) -> None:
    for at in range(0, len(content), 1 << 17):
        await peer.send(content[at : at + (1 << 17)])


async def _calm(target: Target) -> dict[str, int]:
    """Waits until the server has only us."""
    told: dict[str, int] = {}

    async def alone() -> bool:
        nonlocal told
        told = await target.stats()
        return told["connections"] == 1 and told["waiting_bytes"] == 0

    await eventually(alone, 60)
    return told


async def test_the_server_can_be_asked(target: Target) -> None:
    assert await target.asks() == b"token"
    assert (await target.stats())["connections"] == 1


@pytest.mark.parametrize("name", ATTACKS)
async def test_others_are_served_and_memory_is_bounded(target: Target, name: str) -> None:
    before = await _calm(target)
    reads = name != "answers that nobody reads"
    attack = asyncio.gather(*(_attack(target.port, ATTACKS[name], reads=reads) for _ in range(ATTACKERS)))
    spent_ms = [(await target.stats())["cpu_ms"]]
    while not attack.done():
        spent_ms.append((await target.stats())["cpu_ms"])
    await attack
    spent_ms.append((await target.stats())["cpu_ms"])
    between_ms = statistics.median([later - earlier for earlier, later in pairwise(spent_ms)])
    assert between_ms <= BETWEEN_MS_MAX
    assert spent_ms[-1] - spent_ms[0] <= SPENT_MS_MAX
    after = await _calm(target)
    parts = PARTS_BYTES_MAX if name == "parts of messages" else 0
    grown = after["most_resident_bytes"] - before["most_resident_bytes"]
    assert grown <= GROWTH_BYTES_MAX + parts, f"{grown >> 20} MiB more"


async def test_connections_that_come_and_go(target: Target) -> None:
    """Proves that hundreds of connections, greeted or not, leave nothing behind."""
    before = await _calm(target)
    for said in (b"", GREETING, GREETING + begin(1, SILENCE)):
        peers = [await Peer.connected(target.port) for _ in range(200)]
        for peer in peers:
            await peer.send(said)
        assert await target.asks() == b"token"
        for peer in peers:
            peer.writer.transport.abort()
    after = await _calm(target)
    assert after["most_resident_bytes"] - before["most_resident_bytes"] <= GROWTH_BYTES_MAX
