"""How long the supervisor waits for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0

SETTLED_S: Final = 60.0
"""A worker that served this long had no trouble with its start: what ends it is not counted with what was before."""


@dataclass(frozen=True, slots=True)
class Patience:
    """The waits of one supervisor.

    Attributes:
        start_s: From a worker's start until it says ready, where another one serves in its place; until it says
            anything, where none does.
        hang_s: Longest silence of a worker.
        drain_s: From the request to leave until a worker has ended.
    """

    start_s: float
    hang_s: float
    drain_s: float


def pause_s(failures: int) -> float:
    """Seconds before the next start of a slot whose workers ended so many times in a row: none after the first time."""
    if failures <= 1:
        return 0.0
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 16))
