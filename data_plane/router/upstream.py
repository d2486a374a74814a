"""The relay seam: how the router reaches a replica. One method, so that a faster relay can take its place."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from fairlead.engine.v1 import engine_pb2


class Upstream(Protocol):
    """Sends one request to one replica."""

    def generate(
        self,
        replica: engine_pb2.Replica,
        request: engine_pb2.EngineGenerateRequest,
        *,
        deadline_ns: int,
        metadata: Sequence[tuple[str, str]],
    ) -> AsyncGenerator[engine_pb2.EngineGenerateResponse, None]:
        """Streams a replica's answer. Closing the generator cancels the work there at once.

        Args:
            replica: Where to.
            request: What.
            deadline_ns: Monotonic; the call ends by itself then.
            metadata: Trace context and the like.

        Returns:
            The answer's messages; the last one carries a finish reason.

        Raises:
            UnavailableError: The replica cannot be reached, died, or fell silent in mid-stream; another may do.
            QuotaExceededError: Its queue is full; another may do.
            DeadlineExceededError: The deadline passed.
            FairleadError: Anything else it answers; another replica would answer the same.
        """
        ...
