"""One stream of a connection."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from data_plane.relay.http2.frames import u32

NOTHING: Final[deque[bytes]] = deque(maxlen=0)
"""The queue of all streams where nothing waits: one of its own takes as much memory as all the rest of a stream."""


class Stream:
    """One request and its answer.

    Attributes:
        id: Its number on its connection.
        name: The same as the end of a frame's head.
        context: Whatever the handler keeps with it.
        send_window: Bytes that the peer takes on it now; below 0 after it has lowered its window.
        queue: What waits for the peer's window, in order; NOTHING where nothing does.
        queued_bytes: All of that.
        ending: The header block that ends our side after the queue; empty bytes for none but the end.
        receive_window: Bytes that the peer may send on it still.
        held: What comes is not credited to the peer.
        quick: The next data is neither the first nor the last, is not counted against a promised length, and is
            credited as it comes.
        headed: The peer's first header block came.
        remote_ended: The peer has said all.
        local_ended: We have said all, or it waits in `ending`.
        closed: Nothing more is said on it.
        content_left: Bytes of content that the peer has still promised; -1 where it did not.
    """

    __slots__ = (
        "closed",
        "content_left",
        "context",
        "ending",
        "headed",
        "held",
        "id",
        "local_ended",
        "name",
        "queue",
        "queued_bytes",
        "quick",
        "receive_window",
        "remote_ended",
        "send_window",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.id = stream_id
        self.name = u32(stream_id)
        self.context: Any = None
        self.send_window = send_window
        self.receive_window = receive_window
        self.queue = NOTHING
        self.queued_bytes = 0
        self.ending: bytes | None = None
        self.content_left = -1
        self.held = self.quick = False
        self.headed = self.remote_ended = self.local_ended = self.closed = False
