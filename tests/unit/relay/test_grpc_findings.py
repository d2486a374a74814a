"""What hostile peers and fuzzing have found in the relay's gRPC, each so that it stays found."""

from __future__ import annotations

import tracemalloc

from data_plane.relay.grpc.client_end import ClientCall, ClientEnd
from data_plane.relay.grpc.framing import Cutter, framed
from data_plane.relay.http2 import frames
from data_plane.relay.http2.endpoint import Patience
from data_plane.relay.http2.frames import END_HEADERS, END_STREAM
from data_plane.relay.http2.header_blocks import encoded
from data_plane.relay.http2.limits import Limits
from fairlead.errors import FairleadError, Reason
from tests.fuzz.transport import Transport
from tests.unit.relay.peers import ANSWER, REQUEST, TRAILERS


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


class _Reply:
    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.failures: list[FairleadError | None] = []

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)

    def on_end(self, failure: FairleadError | None) -> None:
        self.failures.append(failure)


async def test_an_answer_that_ends_within_a_message_is_no_whole_one() -> None:
    """Proves that a replica's status does not make an answer whole of which a part is missing."""
    end = ClientEnd(Limits(), Patience(), message_bytes_max=1_000, freed=lambda end: None)
    end.endpoint.connection_made(Transport())
    reply = _Reply()
    ClientCall(encoded(REQUEST), framed(b"ask"), reply).begin(end)
    end.endpoint.data_received(
        frames.settings(())
        + frames.frame(frames.HEADERS, END_HEADERS, 1, encoded(ANSWER))
        + frames.frame(frames.DATA, 0, 1, framed(b"whole") + framed(b"half")[:-1])
        + frames.frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, encoded(TRAILERS))
    )
    assert reply.messages == [framed(b"whole")]
    (failure,) = reply.failures
    assert failure is not None
    assert failure.reason is Reason.REPLICA_LOST
    end.endpoint.connection_lost(None)
