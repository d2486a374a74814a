"""What RFC 9113 and RFC 7541 ask of a server, section by section, frame by frame, on a real socket.

The sections and cases are those that h2spec checks, with the wording of RFC 9113. Beside each: what our server does.
Where the RFC leaves a choice, or we differ, the case says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import h2.config
import h2.connection
import pytest

from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    GOAWAY,
    PADDED,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Setting,
)
from data_plane.relay.http2.header_blocks import Pairs, encoded
from data_plane.relay.http2.limits import Limits
from tests.integration.relay_defence.echo import echoing
from tests.integration.relay_defence.peer import BLOCK, REQUEST, Peer, data, headers, ping

OK = "answered"
IGNORED = "nothing happens"


@dataclass(frozen=True)
class Ends:
    """The connection ends (GOAWAY) with one of these codes."""

    codes: tuple[ErrorCode, ...]


@dataclass(frozen=True)
class Resets:
    """Stream 1 ends (RST_STREAM) with this code, the connection goes on."""

    code: ErrorCode


def ends(*codes: ErrorCode) -> Ends:
    return Ends(codes)


PROTOCOL = ends(ErrorCode.PROTOCOL_ERROR)
SIZE = ends(ErrorCode.FRAME_SIZE_ERROR)
FLOW = ends(ErrorCode.FLOW_CONTROL_ERROR)
COMPRESSION = ends(ErrorCode.COMPRESSION_ERROR)
MALFORMED = Resets(ErrorCode.PROTOCOL_ERROR)
CLOSED = Resets(ErrorCode.STREAM_CLOSED)

frame = frames.frame
u32 = (0xFFFFFFFF).to_bytes(4, "big")


def fields(*more: tuple[bytes, bytes], drop: bytes = b"") -> bytes:
    """A request with more headers, or one fewer."""
    return encoded((*(each for each in REQUEST if each[0] != drop), *more))


def first(*begin: tuple[bytes, bytes]) -> bytes:
    """A request that begins with other headers."""
    return encoded((*begin, *REQUEST))


def setting(name: int, value: int) -> bytes:
    return frames.settings([(name, value)])


def opened(stream_id: int = 1) -> bytes:
    """A request whose content is to come."""
    return headers(stream_id, ended=False)


PRIORITY_FIELDS = b"\0\0\0\0\x10"
X_TEST = b"\x00\x85\xf2\xb2\x4a\x84\xff"  # the name x-test in Huffman's code
HALF = headers(1, flags=0)  # a header block that goes on

Case = tuple[str, str, bytes, object]
CASES: list[Case] = [
    # --- generic: what a client may do in an order that is allowed
    ("generic/2", "idle: a PRIORITY frame", frame(PRIORITY, 0, 1, PRIORITY_FIELDS) + headers(1), OK),
    ("generic/2", "half-closed (remote): WINDOW_UPDATE", headers(1) + frames.window_update(1, 100), OK),
    ("generic/2", "half-closed (remote): PRIORITY", headers(1) + frame(PRIORITY, 0, 1, PRIORITY_FIELDS), OK),
    ("generic/2", "half-closed (remote): RST_STREAM", headers(1) + frames.rst_stream(1, 8), IGNORED),
    ("generic/2", "closed: PRIORITY", headers(1) + frames.rst_stream(1, 8) + frame(PRIORITY, 0, 1, PRIORITY_FIELDS),
     IGNORED),
    ("generic/3.1", "DATA", opened() + data(1, ended=True), OK),
    ("generic/3.1", "several DATA", opened() + data(1) + data(1) + data(1, ended=True), OK),
    ("generic/3.1", "DATA with padding", opened() + data(1, b"\x03token\0\0\0", ended=True, flags=PADDED), OK),
    ("generic/3.2", "HEADERS", headers(1), OK),
    ("generic/3.2", "HEADERS with padding",
     headers(1, block=b"\x02" + BLOCK + b"\0\0", flags=END_HEADERS | PADDED), OK),
    ("generic/3.2", "HEADERS with priority", headers(1, block=PRIORITY_FIELDS + BLOCK, flags=END_HEADERS | PRIORITIZED),
     OK),
    ("generic/3.3", "PRIORITY of weight 256", frame(PRIORITY, 0, 1, b"\0\0\0\0\xff") + headers(1), OK),
    ("generic/3.3", "PRIORITY with an exclusive dependency", frame(PRIORITY, 0, 1, b"\x80\0\0\0\xff") + headers(1), OK),
    ("generic/3.4", "RST_STREAM", opened() + frames.rst_stream(1, 8), IGNORED),
    ("generic/3.5", "SETTINGS", frames.settings([]) + headers(1), OK),
    ("generic/3.7", "PING", ping() + headers(1), OK),
    ("generic/3.8", "GOAWAY, after which what is open is answered",
     opened() + frames.goaway(0, 0) + data(1, ended=True),
     OK),
    ("generic/3.9", "WINDOW_UPDATE of the connection", frames.window_update(0, 1) + headers(1), OK),
    ("generic/3.9", "WINDOW_UPDATE of a stream", opened() + frames.window_update(1, 1) + data(1, ended=True), OK),
    ("generic/3.10", "CONTINUATION",
     headers(1, block=BLOCK[:5], flags=0) + frame(CONTINUATION, END_HEADERS, 1, BLOCK[5:]),
     OK),
    ("generic/3.10", "several CONTINUATIONs",
     headers(1, block=BLOCK[:5], flags=0) + frame(CONTINUATION, 0, 1, BLOCK[5:9])
     + frame(CONTINUATION, END_HEADERS, 1, BLOCK[9:]), OK),
    ("generic/4", "GET", headers(1, block=encoded(((b":method", b"GET"), *REQUEST[1:]))), OK),
    ("generic/4", "HEAD", headers(1, block=encoded(((b":method", b"HEAD"), *REQUEST[1:]))), OK),
    ("generic/4", "POST with trailers", opened() + data(1) + headers(1, block=encoded([(b"x-check", b"1")])), OK),
    ("generic/5", "HPACK: literal with incremental indexing", headers(1, block=BLOCK + b"\x40\x03x-a\x01b"), OK),
    ("generic/5", "HPACK: indexed from the table", headers(1, block=BLOCK + b"\x40\x03x-a\x01b")
     + headers(3, block=BLOCK + b"\xbe"), OK),
    ("generic/5", "HPACK: literal never indexed", headers(1, block=BLOCK + b"\x10\x03x-a\x01b"), OK),
    ("generic/5", "HPACK: a size update first", headers(1, block=b"\x20" + BLOCK), OK),
    ("generic/5", "HPACK: two size updates first", headers(1, block=b"\x20\x3f\xe1\x1f" + BLOCK), OK),
    # --- 4. frames
    ("4.1", "a frame of an unknown kind", frame(0x16, 0, 0, 8 * b"\0") + headers(1), OK),
    ("4.1", "flags that mean nothing", ping(flags=0x16) + headers(1), OK),
    ("4.1", "the reserved bit of a frame's head", ping(stream_id=1 << 31) + headers(1), OK),
    ("4.2", "DATA of 16,384 bytes", opened() + data(1, 16_384 * b"x", ended=True), OK),
    ("4.2", "DATA of 16,385 bytes", opened() + data(1, 16_385 * b"x", ended=True), SIZE),
    ("4.2", "HEADERS of 16,385 bytes", headers(1, block=16_385 * b"x"), SIZE),
    ("4.3", "a header block that is none", headers(1, block=b"\x40"), COMPRESSION),
    ("4.3", "PRIORITY within a header block", HALF + frame(PRIORITY, 0, 1, PRIORITY_FIELDS), PROTOCOL),
    ("4.3", "HEADERS of another stream within a header block", HALF + headers(3), PROTOCOL),
    # --- 5.1 stream states
    ("5.1", "idle: DATA", data(1, ended=True), PROTOCOL),
    ("5.1", "idle: RST_STREAM", frames.rst_stream(1, 8), PROTOCOL),
    ("5.1", "idle: WINDOW_UPDATE", frames.window_update(1, 1), PROTOCOL),
    ("5.1", "idle: CONTINUATION", frame(CONTINUATION, END_HEADERS, 1, BLOCK), PROTOCOL),
    ("5.1", "closed by END_STREAM at both ends: DATA; ignored and counted", headers(1) + data(1), IGNORED),
    ("5.1", "closed by END_STREAM at both ends: HEADERS; ignored and counted", headers(1) + headers(1), IGNORED),
    ("5.1", "closed by RST_STREAM: DATA; ignored and counted", opened() + frames.rst_stream(1, 8) + data(1), IGNORED),
    ("5.1", "closed by RST_STREAM: HEADERS; ignored and counted", opened() + frames.rst_stream(1, 8) + headers(1),
     IGNORED),
    ("5.1", "closed: CONTINUATION", headers(1) + frame(CONTINUATION, END_HEADERS, 1, BLOCK), PROTOCOL),
    ("5.1.1", "a stream of an even number", headers(2), PROTOCOL),
    ("5.1.1", "a stream below an earlier one; taken as closed: ignored and counted", headers(5) + headers(3), IGNORED),
    ("5.3.1", "a stream that depends on itself (no error any more in RFC 9113)",
     frame(PRIORITY, 0, 1, b"\0\0\0\x01\x10") + headers(1), OK),
    ("5.5", "a frame of an unknown kind within a header block", HALF + frame(0x16, 0, 1, b"x"), PROTOCOL),
    # --- 6. frames by kind
    ("6.1", "DATA on stream 0", data(0), PROTOCOL),
    ("6.1", "more padding than frame", opened() + data(1, b"\x06token", flags=PADDED), PROTOCOL),
    ("6.1", "a padded frame without its length", opened() + data(1, b"", flags=PADDED), PROTOCOL),
    ("6.2", "HEADERS on stream 0", headers(0), PROTOCOL),
    ("6.2", "more padding than frame", headers(1, block=b"\xff" + BLOCK, flags=END_HEADERS | PADDED), PROTOCOL),
    ("6.2", "a priority that is cut off", headers(1, block=b"\0\0", flags=END_HEADERS | PRIORITIZED), SIZE),
    ("6.3", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, PRIORITY_FIELDS), PROTOCOL),
    ("6.3", "PRIORITY of four bytes; the RFC would end the stream only", frame(PRIORITY, 0, 1, 4 * b"\0"), SIZE),
    ("6.4", "RST_STREAM on stream 0", frames.rst_stream(0, 8), PROTOCOL),
    ("6.4", "RST_STREAM of three bytes", opened() + frame(RST_STREAM, 0, 1, 3 * b"\0"), SIZE),
    ("6.5", "SETTINGS with ACK and content", frame(SETTINGS, ACK, 0, 6 * b"\0"), SIZE),
    ("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1, b""), PROTOCOL),
    ("6.5", "SETTINGS of three bytes", frame(SETTINGS, 0, 0, 3 * b"\0"), SIZE),
    ("6.5.2", "ENABLE_PUSH of 2", setting(Setting.ENABLE_PUSH, 2), PROTOCOL),
    ("6.5.2", "INITIAL_WINDOW_SIZE of 2 GiB", setting(Setting.INITIAL_WINDOW_SIZE, 1 << 31), FLOW),
    ("6.5.2", "MAX_FRAME_SIZE of 16,383", setting(Setting.MAX_FRAME_SIZE, 16_383), PROTOCOL),
    ("6.5.2", "MAX_FRAME_SIZE of 16 MiB", setting(Setting.MAX_FRAME_SIZE, 1 << 24), PROTOCOL),
    ("6.5.2", "a setting that nobody knows", setting(0xFF, 1) + headers(1), OK),
    ("6.6", "PUSH_PROMISE of a client", opened() + frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + BLOCK), PROTOCOL),
    ("6.7", "PING with ACK that answers nothing", ping(flags=ACK) + headers(1), OK),
    ("6.7", "PING on a stream", ping(stream_id=1), PROTOCOL),
    ("6.7", "PING of six bytes", ping(b"123456"), SIZE),
    ("6.8", "GOAWAY on a stream", frame(GOAWAY, 0, 1, 8 * b"\0"), PROTOCOL),
    ("6.8", "GOAWAY of seven bytes", frame(GOAWAY, 0, 0, 7 * b"\0"), SIZE),
    ("6.9", "WINDOW_UPDATE of 0 for the connection", frames.window_update(0, 0), PROTOCOL),
    ("6.9", "WINDOW_UPDATE of 0 for a stream", opened() + frames.window_update(1, 0), MALFORMED),
    ("6.9", "WINDOW_UPDATE of three bytes", frame(WINDOW_UPDATE, 0, 0, 3 * b"\1"), SIZE),
    ("6.9.1", "the connection's window beyond 2 GiB", 2 * frames.window_update(0, 2**31 - 1), FLOW),
    ("6.9.1", "a stream's window beyond 2 GiB", opened() + 2 * frames.window_update(1, 2**31 - 1),
     Resets(ErrorCode.FLOW_CONTROL_ERROR)),
    ("6.9.2", "a stream's window beyond 2 GiB by SETTINGS", opened() + frames.window_update(1, 2**31 - 1 - 65_535)
     + setting(Setting.INITIAL_WINDOW_SIZE, 2**31 - 1), FLOW),
    ("6.10", "CONTINUATION after a header block that ended",
     opened() + frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL),
    ("6.10", "DATA within a header block", HALF + data(1), PROTOCOL),
    ("6.10", "CONTINUATION on stream 0", HALF + frame(CONTINUATION, END_HEADERS, 0, b""), PROTOCOL),
    ("6.10", "CONTINUATION of another stream", HALF + frame(CONTINUATION, END_HEADERS, 3, b""), PROTOCOL),
    # --- 7. error codes
    ("7", "GOAWAY with a code that nobody knows", opened() + frame(GOAWAY, 0, 0, 4 * b"\0" + u32) + data(1, ended=True),
     OK),
    ("7", "RST_STREAM with a code that nobody knows", opened() + frame(RST_STREAM, 0, 1, u32) + headers(3), IGNORED),
    # --- 8. messages
    ("8.1", "a second header block that does not end the stream",
     opened() + data(1) + headers(1, ended=False), MALFORMED),
    ("8.2.1", "a name in upper case", headers(1, block=fields((b"X-Test", b"1"))), MALFORMED),
    ("8.2.1", "a name with a space", headers(1, block=fields((b"x test", b"1"))), MALFORMED),
    ("8.2.1", "an empty name", headers(1, block=BLOCK + b"\x00\x00\x01v"), MALFORMED),
    ("8.2.1", "a value with a line break", headers(1, block=fields((b"x-test", b"a\r\nb"))), MALFORMED),
    ("8.2.1", "a value with a zero byte", headers(1, block=fields((b"x-test", b"a\0b"))), MALFORMED),
    ("8.2.1", "a value that begins with a space", headers(1, block=fields((b"x-test", b" a"))), MALFORMED),
    ("8.2.2", "connection", headers(1, block=fields((b"connection", b"keep-alive"))), MALFORMED),
    ("8.2.2", "transfer-encoding", headers(1, block=fields((b"transfer-encoding", b"chunked"))), MALFORMED),
    ("8.2.2", "te other than trailers", headers(1, block=fields((b"te", b"trailers, deflate"), drop=b"te")), MALFORMED),
    ("8.3", "a pseudo header that nobody knows", headers(1, block=first((b":test", b"1"))), MALFORMED),
    ("8.3", "a pseudo header of answers", headers(1, block=first((b":status", b"200"))), MALFORMED),
    ("8.3", "a pseudo header in trailers", opened() + data(1) + headers(1, block=encoded([(b":method", b"POST")])),
     MALFORMED),
    ("8.3", "a pseudo header behind others", headers(1, block=fields((b":path", b"/"), drop=b":path")), MALFORMED),
    ("8.3.1", "an empty :path", headers(1, block=first((b":path", b""))), MALFORMED),
    ("8.3.1", "no :method", headers(1, block=fields(drop=b":method")), MALFORMED),
    ("8.3.1", "no :scheme", headers(1, block=fields(drop=b":scheme")), MALFORMED),
    ("8.3.1", "no :path", headers(1, block=fields(drop=b":path")), MALFORMED),
    ("8.3.1", "two :method", headers(1, block=first((b":method", b"POST"))), MALFORMED),
    ("8.3.1", "two :scheme", headers(1, block=first((b":scheme", b"http"))), MALFORMED),
    ("8.3.1", "two :path", headers(1, block=first((b":path", b"/"))), MALFORMED),
    ("8.1.1", "content-length that the DATA does not have", headers(1, ended=False,
     block=fields((b"content-length", b"1"))) + data(1, b"token", ended=True), MALFORMED),
    ("8.1.1", "content-length that several DATA do not have", headers(1, ended=False,
     block=fields((b"content-length", b"1"))) + data(1, b"t") + data(1, b"oken", ended=True), MALFORMED),
    ("8.1.1", "content-length and no DATA", headers(1, block=fields((b"content-length", b"1"))), MALFORMED),
    ("8.1.1", "two that differ",
     headers(1, ended=False, block=fields((b"content-length", b"1"), (b"content-length", b"2"))),
     MALFORMED),
    # --- RFC 7541
    ("hpack/2.3.3", "an index beyond the tables", headers(1, block=BLOCK + b"\xff\x7f"), COMPRESSION),
    ("hpack/4.2", "a size update behind a header", headers(1, block=BLOCK + b"\x20"), COMPRESSION),
    ("hpack/5.2", "Huffman's code", headers(1, block=BLOCK + X_TEST + b"\x83\x49\x50\x9f"), OK),
    ("hpack/5.2", "padded with more than seven bits", headers(1, block=BLOCK + X_TEST + b"\x84\x49\x50\x9f\xff"),
     COMPRESSION),
    ("hpack/5.2", "padded with zeros", headers(1, block=BLOCK + X_TEST + b"\x83\x49\x50\x90"), COMPRESSION),
    ("hpack/5.2", "with the code of the end", headers(1, block=BLOCK + X_TEST + b"\x84\xff\xff\xff\xff"), COMPRESSION),
    ("hpack/6.1", "index 0", headers(1, block=BLOCK + b"\x80"), COMPRESSION),
    ("hpack/6.3", "a table larger than allowed", headers(1, block=b"\x3f\xe2\x1f" + BLOCK), COMPRESSION),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "expected"), [case[2:] for case in CASES], ids=[f"{c[0]} {c[1]}" for c in CASES])
async def test_sections(sent: bytes, expected: object) -> None:
    async with echoing() as server:
        peer = await Peer.greeted(server.port)
        await peer.send(sent)
        if isinstance(expected, Ends):
            await peer.until_closed()
            assert peer.goaway_code in expected.codes
        elif isinstance(expected, Resets):
            await peer.settled()
            assert peer.reset_code(1) == expected.code
            await peer.send(headers(101))
            assert await peer.answered(101)
        elif expected is OK:
            assert await peer.answered(1)
            assert peer.reset_code(1) in (None, ErrorCode.NO_ERROR)
        else:
            await peer.settled()
            assert not peer.closed
            assert peer.goaway_code is None
            await peer.send(headers(101))
            assert await peer.answered(101)
        await peer.close()


@pytest.mark.parametrize("begin", [b"INVALID CONNECTION PREFACE\r\n\r\n", PREFACE + headers(1), PREFACE + ping()])
async def test_3_4_a_preface_that_is_none(begin: bytes) -> None:
    async with echoing() as server:
        peer = await Peer.connected(server.port)
        await peer.send(begin)
        await peer.until_closed()
        assert peer.goaway_code == ErrorCode.PROTOCOL_ERROR
        await peer.close()


async def test_3_4_the_first_frame_of_a_server_is_its_settings() -> None:
    async with echoing() as server:
        peer = await Peer.connected(server.port)
        await peer.until(lambda: peer.frames)
        assert (peer.frames[0].kind, peer.frames[0].flags) == (SETTINGS, 0)
        names = [name for name, _ in frames.read_parameters(peer.frames[0].payload)]
        assert Setting.MAX_CONCURRENT_STREAMS in names
        assert Setting.ENABLE_PUSH not in names
        await peer.close()


async def test_5_1_half_closed_takes_no_more_content() -> None:
    """Proves STREAM_CLOSED for DATA and HEADERS on a stream whose request has ended and whose answer waits."""
    for more in (data(1), headers(1)):
        async with echoing() as server:
            peer = await Peer.greeted(server.port, settings=((Setting.INITIAL_WINDOW_SIZE, 0),))
            await peer.send(opened() + data(1, ended=True) + more)
            await peer.settled()
            assert peer.reset_code(1) == ErrorCode.STREAM_CLOSED
            await peer.close()


async def test_5_1_2_one_stream_too_many() -> None:
    async with echoing(Limits(streams_max=3)) as server:
        peer = await Peer.greeted(server.port)
        await peer.send(b"".join(opened(stream_id) for stream_id in (1, 3, 5, 7)))
        await peer.settled()
        assert [peer.reset_code(stream_id) for stream_id in (1, 3, 5, 7)] == [None] * 3 + [ErrorCode.REFUSED_STREAM]
        await peer.close()


async def test_5_4_1_a_connection_that_ends_says_its_last_stream() -> None:
    async with echoing() as server:
        peer = await Peer.greeted(server.port)
        await peer.send(headers(1) + headers(3) + ping(b"short"))
        await peer.until_closed()
        last = peer.frames[-1]
        assert last.kind == GOAWAY
        assert frames.read_u32(last.payload) == 3
        await peer.close()


async def test_6_5_3_settings_count_in_their_order_and_are_acknowledged() -> None:
    async with echoing() as server:
        peer = await Peer.greeted(server.port)
        await peer.send(
            frames.settings([(Setting.INITIAL_WINDOW_SIZE, 100), (Setting.INITIAL_WINDOW_SIZE, 1)])
            + opened()
            + data(1, ended=True)
        )
        await peer.settled()
        assert sum(each.kind == SETTINGS and each.flags == ACK for each in peer.frames) == 2
        assert peer.content(1) == b"t"
        await peer.close()


async def test_6_7_a_ping_comes_back() -> None:
    async with echoing() as server:
        peer = await Peer.greeted(server.port)
        await peer.send(ping(b"abcdefgh"))
        await peer.until(lambda: any(each.payload == b"abcdefgh" and each.flags == ACK for each in peer.frames))
        assert not peer.closed
        await peer.close()


async def test_6_9_windows_hold_data_up_and_let_it_go() -> None:
    """Proves for a window of 1, one that grows, one that was made negative, and the connection's own."""
    async with echoing() as server:
        peer = await Peer.greeted(server.port, settings=((Setting.INITIAL_WINDOW_SIZE, 3),))
        await peer.send(opened() + data(1, b"0123456789", ended=True))
        await peer.settled()
        assert peer.content(1) == b"012"
        await peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 1) + frames.window_update(1, 2))  # 1 - 3 + 2: nothing
        await peer.settled()
        assert peer.content(1) == b"012"
        await peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 2))
        await peer.settled()
        assert peer.content(1) == b"0123"
        await peer.send(frames.window_update(1, 100))
        assert await peer.answered(1)
        assert peer.content(1) == b"0123456789"
        await peer.send(setting(Setting.INITIAL_WINDOW_SIZE, 1 << 20) + opened(3))
        for _ in range(10):
            await peer.send(data(3, 10_000 * b"x"))
        await peer.send(data(3, b"", ended=True))
        await peer.settled()
        assert len(peer.content(3)) == 65_535 - 10
        await peer.send(frames.window_update(0, 1 << 20))
        assert await peer.answered(3)
        assert len(peer.content(3)) == 100_000
        await peer.close()


MALFORMED_BY_H2: list[Pairs] = [
    ((b":method", b"POST"), (b":path", b"/echo")),
    (*REQUEST, (b"Upper", b"case")),
    (*REQUEST, (b"connection", b"close")),
    (*REQUEST, (b":late", b"1")),
    (*REQUEST[:3], (b":path", b"/again"), *REQUEST[3:]),
]


@pytest.mark.parametrize("wrong", MALFORMED_BY_H2)
async def test_8_3_the_h2_package_without_its_rules(wrong: Pairs) -> None:
    """Proves that a usual client's encoding, with its table and Huffman's code, changes nothing of what is refused."""
    config = h2.config.H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None
    )
    core = h2.connection.H2Connection(config)
    core.initiate_connection()
    async with echoing() as server:
        peer = await Peer.connected(server.port)
        for stream_id, sent in ((1, REQUEST), (3, wrong), (5, REQUEST)):
            core.send_headers(stream_id, sent, end_stream=True)
        await peer.send(core.data_to_send())
        assert await peer.answered(1)
        assert await peer.answered(5)
        assert peer.reset_code(3) == ErrorCode.PROTOCOL_ERROR
        assert not peer.closed
        await peer.close()


def test_every_section_of_the_frame_layer_is_in_the_table() -> None:
    sections = {case[0] for case in CASES}
    assert {"4.1", "4.2", "4.3", "5.1", "5.1.1", "5.5", *(f"6.{n}" for n in range(1, 11)), "7", "8.1"} <= sections
