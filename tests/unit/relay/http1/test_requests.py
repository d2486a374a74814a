"""From bytes to requests: what is taken, what is refused, every limit at the limit and one beyond."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.relay.http1.answers import lines, path_of
from data_plane.relay.http1.limits import BodyRoom, Limits
from data_plane.relay.http1.requests import SLICE_BYTES, Reader, Request

POST = b"POST /a HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"
SMALL = Limits(head_bytes_max=200, headers_max=4, body_bytes_max=10, bodies_bytes_max=15)


class Lab:
    """A reader that is fed as a connection feeds it."""

    def __init__(self, limits: Limits | None = None, room: BodyRoom | None = None) -> None:
        limits = limits or Limits()
        self.room = room or BodyRoom(limits.bodies_bytes_max)
        self.reader = Reader(limits, self.room)
        self.requests: list[Request] = []

    def feed(self, data: bytes) -> Lab:
        while data:
            size = self.reader.appetite
            self.reader.feed(data[:size])
            data = data[size:]
            self.requests += self.reader.arrived
            self.reader.arrived.clear()
        return self

    @property
    def bodies(self) -> list[bytes]:
        return [self.reader.body(request) for request in self.requests if request.whole]

    @property
    def status(self) -> int:
        """Of the fault of the last request; 0 where there is none."""
        fault = self.requests[-1].fault if self.requests else None
        assert (fault is not None) == self.reader.broken
        return fault.status if fault is not None else 0


def chunked(*chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + body + last


def sized(body: bytes) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_a_request() -> None:
    """Method, target, headers and body arrive as sent; names in lower case, the first of a name counts."""
    data = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Y: 1\r\nx-y: 2\r\nContent-Length: 5\r\n\r\nhello"
    (request,) = Lab().feed(data).requests
    assert (request.method, request.target, request.whole, request.keeps) == ("POST", b"/a?b=c", True, True)
    assert request.headers == {b"host": b"x", b"x-y": b"1", b"content-length": b"5"}
    assert request.drop() == b"hello"


STREAM = sized(b"hello") + GET + chunked(b"ab", b"cde", last=b"0\r\nX: y\r\n\r\n") + b"\r\n" + sized(b"")


@given(st.lists(st.integers(1, 40), min_size=1))
def test_however_the_bytes_come(sizes: list[int]) -> None:
    """The same four requests, however the network cuts them; a trailer of one is no header of the next."""
    lab, at, turn = Lab(), 0, 0
    while at < len(STREAM):
        size = sizes[turn % len(sizes)]
        lab.feed(STREAM[at : at + size])
        at, turn = at + size, turn + 1
    assert [request.method for request in lab.requests] == ["POST", "GET", "POST", "POST"]
    assert lab.bodies == [b"hello", b"", b"abcde", b""]
    assert all(b"x" not in request.headers for request in lab.requests)
    assert lab.room.taken == 0
    assert not lab.reader.broken


@given(st.binary(max_size=300), st.integers(0, len(STREAM)), st.integers(1, 50))
def test_garbage_is_refused_or_waited_for(garbage: bytes, at: int, size: int) -> None:
    """Whatever comes in the middle, the reader neither raises nor keeps room it does not need."""
    lab = Lab(SMALL)
    data = STREAM[:at] + garbage + STREAM[at:]
    for start in range(0, len(data), size):
        lab.feed(data[start : start + size])
    lab.reader.close()
    for request in lab.requests:
        lab.reader.body(request)
    assert lab.room.taken == 0


SMUGGLED = {
    "both lengths": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, the other way": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "a length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two lengths": POST + b"Content-Length: 3, 4\r\n\r\nabc",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "a hexadecimal length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "no length": POST + b"Content-Length: \r\n\r\nabc",
    "too long a length": POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "space before the colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked, then not": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "almost chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "not chunked last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a folded header": POST + b"X: a\r\n b\r\n\r\n",
    "space before a header": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "a bare return": b"GET / HTTP/1.1\rHost: x\r\n\r\n",
    "a zero byte": POST + b"X: a\x00b\r\n\r\n",
    "no name": POST + b": y\r\n\r\n",
    "a negative chunk": chunked(last=b"-1\r\nabc\r\n0\r\n\r\n"),
    "a chunk with 0x": chunked(last=b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a chunk with a space": chunked(last=b"3 \r\nabc\r\n0\r\n\r\n"),
    "more than the chunk": chunked(last=b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunks of line feeds": chunked(last=b"3\nabc\n0\n\n"),
    "too long a chunk": chunked(last=b"fffffffffffffffff\r\nabc"),
    "an extension with a line feed": chunked(last=b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
    "a length in the trailer": chunked(b"a", last=b"0\r\nContent-Length: 3\r\n\r\n"),
    "no version": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two keys": POST + b"Authorization: a\r\nauthorization: b\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01",
    "no method": b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no path": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_two_readers_could_read_differently(name: str, size: int) -> None:
    """Requests whose end is a matter of opinion are refused, and nothing after them is read."""
    lab = Lab().feed(GET)
    data = SMUGGLED[name] + b"\r\n" + GET
    for start in range(0, len(data), size):
        lab.feed(data[start : start + size])
    assert lab.status in (400, 501, 505)
    assert [request.whole for request in lab.requests] == [True, False]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (POST + b"Expect: a-miracle\r\n\r\n", 417),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ],
)
def test_what_is_not_spoken_here(data: bytes, status: int) -> None:
    """What HTTP allows and this server does not is refused with the status that says so."""
    assert Lab().feed(data).status == status


def framed(size: int) -> bytes:
    """A GET whose head counts for so many bytes."""
    return b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (size - 1 - 9 - 5) + b"\r\n\r\n"


def test_the_heads_size() -> None:
    """At the limit and one byte beyond; likewise when a client never comes to the end of a header."""
    assert Lab(SMALL).feed(framed(200)).status == 0
    assert Lab(SMALL).feed(framed(201)).status == 431
    lab = Lab(SMALL).feed(b"GET / HTTP/1.1\r\nX: ")
    assert lab.feed(b"a" * (200 + SLICE_BYTES - 19)).status == 0
    assert lab.feed(b"a").status == 431
    assert Lab(SMALL).feed(b"GET /" + b"a" * 200).status == 431


def test_the_number_of_headers() -> None:
    """At the limit and one beyond; a name that comes again counts again."""
    assert Lab(SMALL).feed(POST + b"X: 1\r\n" * 3 + b"\r\n").status == 0
    assert Lab(SMALL).feed(POST + b"X: 1\r\n" * 4 + b"\r\n").status == 431


@pytest.mark.parametrize("request_of", [sized, lambda body: chunked(*(body[i : i + 1] for i in range(len(body))))])
def test_the_bodys_size(request_of: object) -> None:
    """At the limit and one byte beyond; a length is refused before any of the body came."""
    assert callable(request_of)
    lab = Lab(SMALL).feed(request_of(b"a" * 10))
    assert (lab.status, lab.bodies) == (0, [b"a" * 10])
    lab = Lab(SMALL).feed(request_of(b"a" * 11))
    assert (lab.status, lab.room.taken) == (413, 0)
    assert Lab(SMALL).feed(POST + b"Content-Length: 11\r\n\r\n").status == 413


def test_the_room_of_all_bodies() -> None:
    """Unfinished bodies of all connections fit into one room; who comes too late is refused, and room comes back."""
    room = BodyRoom(SMALL.bodies_bytes_max)
    first, second, third = (Lab(SMALL, room) for _ in range(3))
    first.feed(sized(b"a" * 10)[:-1])
    second.feed(sized(b"b" * 10)[:-4])
    assert (second.status, room.taken) == (0, 15)
    assert third.feed(sized(b"c")).status == 503
    first.feed(b"a")
    assert first.status == 503
    assert room.taken == 6
    assert second.feed(b"bbbb").bodies == [b"b" * 10]
    assert room.taken == 0


def test_chunks_that_are_mostly_not_body() -> None:
    """Extensions of chunks and trailers have a bound of their own; small chunks are fine."""
    limits = Limits(body_bytes_max=1_000_000)
    lab = Lab(limits).feed(chunked(*[b"a"] * 50_000))
    assert (lab.status, len(lab.bodies[0])) == (0, 50_000)
    assert Lab(limits).feed(chunked(last=b"1;" + b"e" * 50_000 + b"\r\na\r\n0\r\n\r\n")).status == 400
    assert (
        Lab(limits).feed(chunked(b"a", last=b"0\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyy\r\n" * 2_000 + b"\r\n")).status == 400
    )


def test_many_requests_at_once_are_taken_a_slice_at_a_time() -> None:
    """A client that sends thousands of requests ahead has only those of one slice parsed before the first answer."""
    reader = Reader(Limits(), BodyRoom(1))
    data = GET * 1000
    reader.feed(data[: reader.appetite])
    assert len(reader.arrived) == SLICE_BYTES // len(GET)


@pytest.mark.parametrize("body", [b"", b"abc", b"chunks"])
def test_a_request_for_another_protocol_is_read_as_one_of_this(body: bytes) -> None:
    """`Upgrade` is ignored, with and without a body, and what follows is the next request."""
    upgrade = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    if body == b"chunks":
        data = upgrade + b"Transfer-Encoding: chunked\r\n\r\n3\r\nchu\r\n3\r\nnks\r\n0\r\n\r\n"
    else:
        data = upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for size in (1, 7, 1000):
        lab = Lab()
        for start in range(0, len(data + data + GET), size):
            lab.feed((data + data + GET)[start : start + size])
        assert [request.method for request in lab.requests] == ["POST", "POST", "GET"]
        assert lab.bodies == [body, body, b""]


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"/a?b#c", "/a"), (b"http://h:1/a/b?c", "/a/b"), (b"http://h", ""), (b"*", "*"), (b"/a%2Fb", "/a%2Fb")],
)
def test_paths(target: bytes, path: str) -> None:
    """The path of every form of target, as sent."""
    assert path_of(target) == path


def test_no_header_of_an_answer_begins_another() -> None:
    """A line break in a header's value is a defect of the caller's, not a second header."""
    with pytest.raises(ValueError, match="line break"):
        lines({"X": "a\r\nSet-Cookie: b"})
