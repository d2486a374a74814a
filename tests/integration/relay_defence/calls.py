"""Calls of gRPC in frames, for `serving`'s methods."""

from __future__ import annotations

from data_plane.relay.grpc.framing import framed
from data_plane.relay.http2.header_blocks import encoded
from tests.integration.relay_defence.peer import Peer, data, headers
from tests.unit.relay.server.serving import path


def block(method: str, *more: tuple[bytes, bytes]) -> bytes:
    """A call's headers."""
    return encoded(
        (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path(method).encode()),
            (b":authority", b"router"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *more,
        )
    )


ONCE = block("Once")
THRICE = block("Thrice")
SILENCE = block("Silence")


def begin(stream_id: int, which: bytes = SILENCE) -> bytes:
    """A call whose message is to come."""
    return headers(stream_id, ended=False, block=which)


def call(stream_id: int, which: bytes = ONCE, message: bytes = b"token") -> bytes:
    """A whole call; the message goes into one frame."""
    return begin(stream_id, which) + data(stream_id, framed(message), ended=True)


def grpc_status(peer: Peer, stream_id: int) -> int | None:
    """With which status a call ended; None where it has not."""
    said = peer.fields(stream_id).get(b"grpc-status")
    return None if said is None else int(said)


async def works(port: int) -> bool:
    """Whether a new client is served."""
    peer = await Peer.greeted(port)
    await peer.send(call(1))
    await peer.answered(1)
    await peer.close()
    return grpc_status(peer, 1) == 0
