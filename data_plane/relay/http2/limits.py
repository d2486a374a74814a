"""What one connection may cost: sizes, counts, and how often a peer may do what makes work for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from data_plane.relay.http2.frames import FRAME_BYTES_START, WINDOW_START

UPDATES_PER_DATA_FRAME: Final = 10
"""WINDOW_UPDATEs that a peer may send for each DATA frame it got. Source: Envoy's default."""

UPDATES_PER_STREAM: Final = 2
"""And for each stream: grpcio widens a stream's window as soon as it wants to read. Source: Envoy's bound."""


@dataclass(frozen=True)
class Limits:
    """Of one connection.

    Attributes:
        streams_max: Streams that a client may have open at once.
        frame_bytes_max: Longest payload that the peer may send, 16,384 or more.
        header_block_bytes_max: Longest header block as sent, over all its frames: what is too long for one request is
            still to be decoded, for the sake of the others on its connection.
        header_list_bytes_max: All headers of a block together, decoded, each with 32 bytes more.
        continuations_max: Frames by which a header block may go on.
        stream_window_bytes: What the peer may send on a stream that is held, or before it hears of more, 65,535 or
            more.
        connection_window_bytes: The same on all streams together.
        resets_burst: Streams that a client may give up, or have given up for its mistakes, at once. Source: nghttp2.
        resets_per_s: And for how long it goes on like that. Source: nghttp2.
        controls_burst: PINGs, SETTINGS and frames without effect at once. A PING for each DATA frame it got is free:
            clients measure the path so.
        controls_per_s: And for how long it goes on like that.
        answers_max: Answers to such frames that may wait to be sent: a peer that asks and does not read is given up.
            While the network takes nothing and as many frames wait, new requests are refused. Source: Envoy's bound on
            outbound control frames is 1,000.
    """

    streams_max: int = 1_000
    frame_bytes_max: int = FRAME_BYTES_START
    header_block_bytes_max: int = 131_072
    header_list_bytes_max: int = 32_768
    continuations_max: int = 8
    stream_window_bytes: int = 1 << 18
    connection_window_bytes: int = 1 << 22
    resets_burst: int = 1_000
    resets_per_s: float = 33.0
    controls_burst: int = 1_000
    controls_per_s: float = 50.0
    answers_max: int = 1_000

    def __post_init__(self) -> None:
        if min(self.stream_window_bytes, self.connection_window_bytes) < WINDOW_START:
            raise ValueError(f"windows are of {WINDOW_START} bytes at least: as much comes before a peer knows better")
        if self.frame_bytes_max < FRAME_BYTES_START:
            raise ValueError(f"frames of {FRAME_BYTES_START} bytes cannot be forbidden")


class Allowance:
    """A token bucket: what a peer may do before it is a flood.

    Args:
        burst: How often at once.
        per_s: How often a second for ever.
        now_s: Monotonic now.
    """

    __slots__ = ("_at_s", "_burst", "_left", "_per_s")

    def __init__(self, burst: float, per_s: float, now_s: float) -> None:
        self._burst = self._left = burst
        self._per_s = per_s
        self._at_s = now_s

    def spend(self, now_s: float, earned: float = 0.0) -> bool:
        """Once more.

        Args:
            now_s: Monotonic now; it may have gone backwards.
            earned: What it has earned since beside the time.

        Returns:
            Whether that is allowed.
        """
        self._left = min(self._burst, self._left + max(0.0, now_s - self._at_s) * self._per_s + earned)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
