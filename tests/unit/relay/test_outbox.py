"""Who has something to write, when it is written, and how reading slows down where much comes; in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from data_plane.relay.http2 import frames
from data_plane.relay.http2.endpoint import Endpoint, Patience
from data_plane.relay.http2.frames import PREFACE
from data_plane.relay.http2.header_blocks import encoded
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.sending import WRITE_BYTES_MAX
from data_plane.relay.outbox import BUSY_FRAMES_PER_S, Outbox
from tests.support.virtual_loop import run_virtually
from tests.unit.relay.peers import ANSWER, REQUEST, Recorder, data, request


class Writer:
    def __init__(self, outbox: Outbox, other: Writer | None = None) -> None:
        self.touched = False
        self.flushed = 0
        self.outbox = outbox
        self.other = other

    def flush(self) -> None:
        self.flushed += 1
        if self.other is not None:
            self.outbox.touch(self.other)


def test_who_is_touched_is_flushed_once_at_the_loops_next_step() -> None:
    async def main() -> None:
        outbox = Outbox.here()
        assert outbox is Outbox.here()
        last = Writer(outbox)
        writers = [Writer(outbox), Writer(outbox, last)]
        for _ in range(3):
            for writer in writers:
                outbox.touch(writer)
        assert [writer.flushed for writer in writers] == [0, 0]
        await asyncio.sleep(0)
        assert [writer.flushed for writer in writers] == [1, 1]
        assert last.flushed == 0  # it was touched by a flush
        await asyncio.sleep(0)
        assert last.flushed == 1
        outbox.touch(last)
        await asyncio.sleep(0)
        assert last.flushed == 2

    run_virtually(main())


def test_one_who_cannot_write_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Writer):
        def flush(self) -> None:
            raise ValueError("no")

    async def main() -> None:
        outbox = Outbox.here()
        broken, writer = Broken(outbox), Writer(outbox)
        for _ in range(2):
            outbox.touch(broken)
            outbox.touch(writer)
            await asyncio.sleep(0)
        assert writer.flushed == 2

    run_virtually(main())
    assert [record.message for record in caplog.records] == ["cannot write"] * 2


def test_within_a_read_nothing_is_scheduled() -> None:
    async def main() -> None:
        outbox = Outbox.here()
        writer = Writer(outbox)
        outbox.reading = True
        outbox.touch(writer)
        await asyncio.sleep(0)
        assert writer.flushed == 0
        outbox.flush()
        assert writer.flushed == 1
        assert not outbox.reading
        await asyncio.sleep(0)
        assert writer.flushed == 1

    run_virtually(main())


class Transport(asyncio.Transport):
    """Keeps what is written, and whether it is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.reading = True
        self.pauses = 0
        self.closing = False

    def write(self, data: Any) -> None:
        self.writes.append(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == WRITE_BYTES_MAX

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False
        self.pauses += 1

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


def ends(*, client: bool) -> tuple[Endpoint, Recorder, Transport]:
    recorder, transport = Recorder(), Transport()
    endpoint = Endpoint(recorder, Limits(), Patience(), client=client)
    recorder.connection = endpoint.connection
    endpoint.connection_made(transport)
    transport.writes.clear()
    return endpoint, recorder, transport


def test_one_write_for_each_client_of_a_read() -> None:
    """Proves that what one read from a replica brings for two clients goes out as one write each."""

    async def main() -> None:
        replica, _, _ = ends(client=True)
        clients = [ends(client=False) for _ in range(2)]
        for endpoint, _, transport in clients:
            endpoint.data_received(PREFACE + frames.settings([(4, 1 << 20)]) + request(1))
            transport.writes.clear()

        def passes_on(_stream: object, content: bytes, _ended: bool) -> None:
            for endpoint, recorder, _ in clients:
                endpoint.connection.send_data(recorder.streams[1], content)
                endpoint.touch()

        handler = replica.connection._handler
        replica.connection.open(encoded(REQUEST))
        handler.on_data = passes_on  # type: ignore[method-assign]
        answer = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, encoded(ANSWER))
        replica.data_received(frames.settings(()) + answer)
        replica.data_received(data(1, b"one") + data(1, b"two") + data(1, b"three"))
        for _, _, transport in clients:
            assert [write.count(b"\1") for write in transport.writes] == [3]  # three heads name stream 1
            assert b"three" in transport.writes[0]

    run_virtually(main())


@pytest.mark.parametrize("client", [True, False])
def test_reading_slows_down_where_much_comes_and_only_there(client: bool) -> None:
    """Proves that a client's end pauses a millisecond after each read above the rate, not below; a server's never."""

    async def main() -> None:
        endpoint, _, transport = ends(client=client)
        if client:
            endpoint.connection.open(encoded(REQUEST))
            head = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, encoded(ANSWER))
            endpoint.data_received(frames.settings(()) + head)
        else:
            endpoint.data_received(PREFACE + frames.settings(()) + request(1))

        async def run(frames_per_s: int) -> int:
            """Pauses within 50 ms of reads every 2 ms."""
            before = transport.pauses
            for _ in range(25):
                await asyncio.sleep(0.0009)
                assert transport.reading  # the pause was over in time
                await asyncio.sleep(0.0001)
                endpoint.data_received(frames_per_s // 500 * data(1, b"token"))
                paused = not transport.reading
                await asyncio.sleep(0.0009)
                assert transport.reading is not paused
                await asyncio.sleep(0.0001)
            return transport.pauses - before

        assert await run(BUSY_FRAMES_PER_S * 8 // 10) == 0
        assert await run(BUSY_FRAMES_PER_S * 12 // 10) == (0 if not client else pytest.approx(23, abs=2))
        assert Outbox.here().busy is client
        assert await run(BUSY_FRAMES_PER_S // 10) <= 2
        assert not Outbox.here().busy

    run_virtually(main())


def test_what_busy_replicas_bring_at_once_is_one_write_for_each_client() -> None:
    """Proves that all replicas together count as busy, that they are read at the same time, and what that saves."""

    async def main() -> None:
        replicas = [ends(client=True) for _ in range(3)]
        endpoint, recorder, transport = ends(client=False)
        endpoint.data_received(
            PREFACE + frames.settings([(4, 1 << 30)]) + frames.window_update(0, 1 << 30) + request(1)
        )

        def passes_on(_stream: object, content: bytes, _ended: bool) -> None:
            endpoint.connection.send_data(recorder.streams[1], content)
            endpoint.touch()

        for replica, handler, _ in replicas:
            replica.connection.open(encoded(REQUEST))
            handler.on_data = passes_on  # type: ignore[method-assign]
            answer = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, encoded(ANSWER))
            replica.data_received(frames.settings(()) + answer)
        quarter = (
            BUSY_FRAMES_PER_S // 4 // 500
        )  # for each of three: below the rate, and above it with half as much more
        for _ in range(10):
            await asyncio.sleep(0.002)
            for replica, _, _ in replicas:
                replica.data_received(quarter * data(1, b"token"))
        assert not Outbox.here().busy
        for _ in range(10):
            await asyncio.sleep(0.002)
            for replica, _, read in replicas:
                assert read.reading
                replica.data_received(2 * quarter * data(1, b"token"))
        assert Outbox.here().busy
        transport.writes.clear()
        await asyncio.sleep(0.0015)
        transport.writes.clear()
        assert all(read.reading for _, _, read in replicas)
        for replica, _, _ in replicas:
            replica.data_received(2 * quarter * data(1, b"token"))
        assert not transport.writes
        assert not any(read.reading for _, _, read in replicas)
        await asyncio.sleep(0)
        assert [write.count(b"token") for write in transport.writes] == [3 * 2 * quarter]
        await asyncio.sleep(0.0011)
        assert all(read.reading for _, _, read in replicas)
        replicas[0][2].closing = True
        replicas[0][0].data_received(data(1, b"last"))
        replicas[1][0].data_received(1_000 * data(1, b"token"))
        replicas[1][0].connection_lost(None)
        await asyncio.sleep(0.0011)

    run_virtually(main())


def test_a_burst_goes_out_in_parts() -> None:
    """Proves that a stream with megabytes to say is written a quarter of a megabyte at a time, and others between."""

    async def main() -> None:
        endpoint, recorder, transport = ends(client=False)
        windows = frames.settings([(4, 1 << 30)]) + frames.window_update(0, 1 << 30)
        endpoint.data_received(PREFACE + windows + request(1) + request(3))
        transport.writes.clear()
        endpoint.connection.send_data(recorder.streams[1], (1 << 20) * b"x")
        endpoint.touch()
        await asyncio.sleep(0)
        endpoint.connection.send_data(recorder.streams[3], b"token")
        endpoint.touch()
        for _ in range(10):
            await asyncio.sleep(0)
        assert max(map(len, transport.writes)) < WRITE_BYTES_MAX + 1_000
        assert sum(map(len, transport.writes)) > 1 << 20
        assert any(b"token" in write for write in transport.writes[:3])
        assert 1 in recorder.sent

    run_virtually(main())
