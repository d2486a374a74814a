"""When losses of replicas are acted on."""

from __future__ import annotations

from typing import Final

STORM_SHARE: Final = 0.5
"""A loss of more than this part of the named replicas at once is more likely a failure of the view than of them."""

STORM_TIMES: Final = 10
"""So many times as long such a loss is waited for: routers see their own replicas and go on meanwhile."""


class StormWait:
    """Collects losses for a moment, so that ten crashes move workloads once and not ten times.

    Args:
        wait_ns: How long to collect.
    """

    def __init__(self, wait_ns: int) -> None:
        self._wait_ns = wait_ns
        self._since_ns: int | None = None

    def remaining_ns(self, lost_share: float, now_ns: int) -> int:
        """How long to wait before the next placement is written; 0 means write now.

        Args:
            lost_share: Part of the replicas named by the placement in force that do not serve any more, 0 to 1.
            now_ns: Current monotonic time.
        """
        if lost_share <= 0.0:
            self._since_ns = None
            return 0
        if self._since_ns is None:
            self._since_ns = now_ns
        wait_ns = self._wait_ns * (STORM_TIMES if lost_share > STORM_SHARE else 1)
        remaining = max(0, self._since_ns + wait_ns - now_ns)
        if remaining == 0:
            self._since_ns = None
        return remaining
