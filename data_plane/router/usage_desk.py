"""Where every settlement is counted: in the book in memory and in the journal on disk, as one."""

from __future__ import annotations

from common.clock import Clock
from data_plane.router.core.holds import BucketKey
from data_plane.router.core.usage import Counts, UsageBook
from data_plane.router.usage_journal import UsageJournal


class UsageDesk:
    """Counts what was charged.

    Args:
        clock: Time; the hour by the wall.
        journal: Where settlements survive the process, or None for nowhere.

    Attributes:
        book: All of them, summed up.
        journal: As given.
    """

    def __init__(self, clock: Clock, journal: UsageJournal | None) -> None:
        self.book = UsageBook()
        self.journal = journal
        self._clock = clock

    def settled(self, bucket: BucketKey, counts: Counts) -> None:
        """Counts one settlement. Never raises.

        Args:
            bucket: Who pays for what.
            counts: Of this one request.
        """
        hour = self.book.hour_of(self._clock.wall_ns())
        tenant_id, model_id = bucket
        number = self.book.add(hour, tenant_id, model_id, counts, self._clock.monotonic_ns())
        if self.journal is not None:
            self.journal.append(hour, number, tenant_id, model_id, counts)
