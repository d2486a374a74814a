"""Shows that the targets can fail: each test breaks the connection in one place, and its target notices.

Only the sources can be broken so: compiled classes take no other methods.
"""

from __future__ import annotations

import pytest

from data_plane.relay.http2 import frames
from data_plane.relay.http2.connection import Connection
from data_plane.relay.http2.frames import ErrorCode
from data_plane.relay.http2.guarding import Guarding
from data_plane.relay.http2.header_blocks import HeaderDecoder, encoded
from data_plane.relay.http2.limits import Allowance
from data_plane.relay.http2.stream import Stream
from tests.fuzz.http2_targets import REQUEST
from tests.fuzz.targets import TARGETS

SERVER = bytes((2 | 8 | 16,))  # for http2-bytes: a server that is greeted, pieces of 64 bytes, content consumed


def test_no_bound_on_answers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guarding, "_control", lambda *_: None)
    monkeypatch.setattr(Guarding, "_answer", lambda self, answer: self._out.append(5 * answer))
    with pytest.raises(AssertionError):
        TARGETS["http2-bytes"](SERVER + 200 * frames.frame(frames.PING, 0, 0, 8 * b"p"))


def test_windows_that_are_not_kept_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guarding, "_credit_stream", lambda *_: None)
    sent = frames.frame(frames.HEADERS, 4, 1, encoded(REQUEST)) + 3 * frames.frame(frames.DATA, 0, 1, 15_000 * b"x")
    with pytest.raises(AssertionError):
        TARGETS["http2-bytes"](SERVER + sent)


def test_a_stream_that_is_told_of_after_its_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Connection._on_rst_stream

    def twice(self: Connection, flags: int, stream_id: int, payload: bytes) -> None:
        stream = self.streams[stream_id]
        honest(self, flags, stream_id, payload)
        self._handler.on_data(stream, b"late", False)

    monkeypatch.setattr(Connection, "_on_rst_stream", twice)
    sent = frames.frame(frames.HEADERS, 4, 1, encoded(REQUEST)) + frames.rst_stream(1, ErrorCode.CANCEL)
    with pytest.raises((AssertionError, KeyError)):
        TARGETS["http2-bytes"](bytes((2 | 12 | 16,)) + sent)


def test_a_stream_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(self: Connection, stream: Stream) -> None:
        stream.closed = True

    monkeypatch.setattr(Connection, "_close", forgets)
    sent = frames.frame(frames.HEADERS, 4, 1, encoded(REQUEST)) + frames.rst_stream(1, ErrorCode.CANCEL)
    with pytest.raises(AssertionError):
        TARGETS["http2-bytes"](SERVER + sent)


def test_a_wrong_header_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeaderDecoder, "_indexed", lambda _self, _index: (b"x", b"y"))
    with pytest.raises(AssertionError):
        TARGETS["http2-headers"](b"\x01\x82")


def test_work_beyond_what_came_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Allowance.spend

    def laborious(self: Allowance, now_s: float, earned: float = 0.0) -> bool:
        for _ in range(1_000):
            honest(self, now_s, 1.0)
        return honest(self, now_s, earned)

    monkeypatch.setattr(Allowance, "spend", laborious)
    with pytest.raises(AssertionError):
        TARGETS["http2-bytes"](SERVER + 30 * frames.frame(frames.PING, 0, 0, 8 * b"p"))
