"""How long to wait before an engine is started again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """The pause between restarts.

    Attributes:
        first_s: Pause after the second failure in a row, seconds; after the first there is none.
        longest_s: Pauses double up to this, seconds.
        healthy_s: An engine that served this long makes the next failure a first one again, seconds.
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    healthy_s: float = 60.0


class RestartBackoff:
    """No pause after the first failure, then 1, 2, 4, ... 30 s, until an engine has served for a minute.

    Args:
        limits: The pauses.
    """

    def __init__(self, limits: RestartLimits | None = None) -> None:
        self._limits = limits or RestartLimits()
        self._failures = 0

    def pause_s(self, served_s: float) -> float:
        """The pause after a failure.

        Args:
            served_s: How long the engine that failed had served, seconds; 0 when it did not come up.

        Returns:
            Seconds to wait before the next start.
        """
        self._failures = 1 if served_s >= self._limits.healthy_s else self._failures + 1
        if self._failures == 1:
            return 0.0
        return min(self._limits.longest_s, self._limits.first_s * 2.0 ** min(self._failures - 2, 30))
