"""Renders what became of tickets as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from data_plane.router.metrics import PREFIX
from data_plane.router.ticket_ledger import TicketLedger


class TicketCollector(Collector):
    """A prometheus_client collector over the ledger.

    Args:
        ledger: The open tickets, and what was counted of the others.
    """

    def __init__(self, ledger: TicketLedger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        counts = self._ledger.counts
        for name, text, count in (
            ("tickets_issued", "Tickets issued.", counts.issued),
            ("tickets_unused", "Tickets that were never redeemed.", counts.unused),
            ("tickets_lost", "Tickets whose replica was given up.", counts.lost),
            ("tickets_unknown", "Reported ends of tickets that are not open here.", counts.unknown),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value=count)
        yield GaugeMetricFamily(PREFIX + "tickets_open", "Tickets that have not ended.", value=len(self._ledger.book))

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the books."""
        return ()
