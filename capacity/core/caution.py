"""Doubts a sudden collapse of live capacity for a moment: an empty view is usually the view's fault.

Replica records live on leases of the store. When the store was frozen or everything starts at once, they can all be
missing for a second or two although every replica serves; quotas that followed would refuse all traffic. So when a
model's live capacity falls below half of what is granted on it, the stored quotas stand for a short while: a few
seconds, or the takeover's caution where that ends later. Half: the loss of one of two replicas still counts at once.
"""

from __future__ import annotations

from common.clock import NS_PER_S, MonotonicNs

# Agents re-register within about a second of losing their record; three leave room for a busy machine.
DOUBT_NS = 3 * NS_PER_S


class Caution:
    """Remembers since when each model's capacity looks collapsed.

    Args:
        cautious_until: End of the caution after a takeover.
    """

    def __init__(self, cautious_until: MonotonicNs) -> None:
        self._cautious_until = cautious_until
        self._since: dict[str, MonotonicNs] = {}

    def doubts(self, model_id: str, have: int, granted: int, now: MonotonicNs) -> bool:
        """Whether to keep the stored quotas of a model for now.

        Args:
            model_id: The model.
            have: Live capacity seen now, milli-MU per minute.
            granted: Sum of its stored quotas, milli-MU per minute.
            now: Current time.

        Returns:
            True while a fall below half is too fresh to be believed.
        """
        if have * 2 >= granted:
            self._since.pop(model_id, None)
            return False
        since = self._since.setdefault(model_id, now)
        return now < self._end(since)

    def next_end(self, now: MonotonicNs) -> MonotonicNs | None:
        """When the next doubt ends, so that quotas follow at once; None while nothing is doubted."""
        return min((end for end in map(self._end, self._since.values()) if end > now), default=None)

    def _end(self, since: MonotonicNs) -> MonotonicNs:
        return MonotonicNs(max(self._cautious_until, since + DOUBT_NS))
