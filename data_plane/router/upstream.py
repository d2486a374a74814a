"""The relay seam: how the router reaches a replica, and whom an upstream tells what came.

Everything is pushed: per token there is one plain call. `upstream_pulled` makes an upstream of an async generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError

Metadata = Sequence[tuple[str, str]]


class Receiver(Protocol):
    """Whom an upstream tells. No call raises; each may cancel, pause or resume what runs."""

    def on_piece(self, piece: bytes, tokens: int) -> None:
        """A message of nothing but text and tokens came.

        Args:
            piece: Its bytes; see data_plane.relay.grpc.pieces.
            tokens: What `tokens_of` says of it.
        """
        ...

    def on_message(self, message: engine_pb2.EngineGenerateResponse) -> None:
        """Any other message came: the last one carries a finish reason."""
        ...

    def on_end(self, failure: FairleadError | None) -> None:
        """The stream is over, and nothing comes after it.

        Args:
            failure: None when the replica ended it in order. UnavailableError: it cannot be reached, died or broke off;
                another may do. QuotaExceededError: its queue is full; another may do. DeadlineExceededError: the
                deadline passed. Anything else: another replica would answer the same.
        """
        ...


class Running(Protocol):
    """A request at a replica."""

    def cancel(self) -> None:
        """Ends the work there at once; the receiver is told nothing more. Harmless after the end."""
        ...

    def pause(self) -> None:
        """The client does not keep up: no more than what is under way is taken from the network."""
        ...

    def resume(self) -> None:
        """It does again."""
        ...


class Upstream(Protocol):
    """Sends requests to replicas."""

    def start(
        self,
        replica: engine_pb2.Replica,
        request: bytes,
        *,
        deadline_ns: int,
        metadata: Metadata,
        receiver: Receiver,
    ) -> Running:
        """Sends one request to one replica. Never raises.

        Args:
            replica: Where to.
            request: What: an engine.v1.EngineGenerateRequest.
            deadline_ns: Monotonic; the replica is told it, and gives up by itself then.
            metadata: Trace context and the like.
            receiver: Told of the answer, but never before this has returned.
        """
        ...
