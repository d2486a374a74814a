"""Where every settlement is counted: in the book in memory and in the journal on disk, as one."""

from __future__ import annotations

from common.clock import Clock
from data_plane.router.core.usage import Counts, Payer, UsageBook
from data_plane.router.usage_journal import UsageJournal


class UsageDesk:
    """Counts what was charged.

    Args:
        clock: Tells the hour, by the wall.
        journal: Where settlements survive the process, or None for nowhere.

    Attributes:
        book: All of them, summed up.
        journal: As given.
    """

    def __init__(self, clock: Clock, journal: UsageJournal | None) -> None:
        self.book = UsageBook()
        self.journal = journal
        self._clock = clock

    def settled(self, payer: Payer, counts: Counts, now_ns: int) -> None:
        """Counts one settlement. Never raises.

        Args:
            payer: Who pays for what.
            counts: Of this one request.
            now_ns: Monotonic now.
        """
        hour = self.book.hour_of(self._clock.wall_ns())
        number = self.book.add(hour, payer, counts, now_ns)
        if self.journal is not None:
            self.journal.append(hour, number, payer, counts)
