"""What hostile peers and fuzzing have found in the relay's gRPC, each so that it stays found."""

from __future__ import annotations

import tracemalloc

from data_plane.relay.grpc.framing import Cutter, framed


def test_a_message_in_tiny_parts_keeps_no_more_than_a_whole_one() -> None:
    """Proves that a client cannot make its parts of two bytes cost forty each."""
    message = framed(60_000 * b"x")
    cutter = Cutter(2_000_000)
    tracemalloc.start()
    for at in range(0, len(message) - 2, 2):
        assert cutter.feed(message[at : at + 2]) == []
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert cutter.feed(message[-1:]) == [message]
    assert kept < 2 * len(message)
