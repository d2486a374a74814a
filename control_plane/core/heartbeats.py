"""Which replicas died, from whether they still report: pure.

A replica's record in the store outlives it by its lease. Its load stream does not: a port that refuses connections, or
a pause that no healthy agent makes, says so earlier. Nobody is believed to be dead because many fell silent at once:
then it is more likely that the one who listens was cut off.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from common.clock import NS_PER_S

SILENT_S: Final = 6.0
"""Three reports in a row are missing; with the storm wait and a round a crash is in the assignment within 10 s."""

BLIND_SHARE: Final = 0.5
"""When more than this part of all replicas that were heard falls silent, it is the listener's view that broke."""


class Heartbeats:
    """Remembers who was heard when."""

    def __init__(self) -> None:
        self._heard_ns: dict[str, int] = {}
        self._gone: set[str] = set()

    @property
    def heard_count(self) -> int:
        """Replicas that were heard at least once."""
        return len(self._heard_ns)

    def heard(self, replica_id: str, now_ns: int) -> None:
        """Notes a report.

        Args:
            replica_id: Who sent it.
            now_ns: Monotonic time.
        """
        self._heard_ns[replica_id] = now_ns
        self._gone.discard(replica_id)

    def gone(self, replica_id: str) -> None:
        """Notes that its address refuses connections, or that another replica answers there."""
        self._gone.add(replica_id)

    def keep(self, replica_ids: Collection[str]) -> None:
        """Forgets every replica that is not registered any more.

        Args:
            replica_ids: Those that are.
        """
        for replica_id in self._heard_ns.keys() - set(replica_ids):
            del self._heard_ns[replica_id]
        self._gone &= set(replica_ids)

    def silent(self, now_ns: int) -> frozenset[str]:
        """Replicas that were heard and are not any more; one that never was says nothing about itself.

        Args:
            now_ns: Monotonic time.
        """
        oldest_ns = now_ns - round(SILENT_S * NS_PER_S)
        return frozenset(
            replica_id
            for replica_id, heard_ns in self._heard_ns.items()
            if heard_ns < oldest_ns or replica_id in self._gone
        )

    def dead(self, now_ns: int) -> frozenset[str]:
        """Replicas to be taken for dead: the silent ones, or nobody where they are too many to be believed.

        Args:
            now_ns: Monotonic time.
        """
        silent = self.silent(now_ns)
        return silent if len(silent) <= BLIND_SHARE * len(self._heard_ns) else frozenset()
