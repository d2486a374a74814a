"""What processes say of themselves at /metrics, as values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_ROUTER = "fairlead_router_"


@dataclass(frozen=True)
class RouterBooks:
    """One router's books at one moment, since the start of its process.

    Attributes:
        received: Requests that arrived.
        finished: Requests by (tenant, outcome, reason).
        in_flight: Received and not finished.
        open_holds: Requests that hold quota.
        settled_milli_mu: Charged work by tenant.
        held_milli_mu: Work held by requests in flight, by tenant.
    """

    received: int
    finished: Counter[tuple[str, str, str]]
    in_flight: int
    open_holds: int
    settled_milli_mu: Counter[str]
    held_milli_mu: Counter[str]

    def admitted_milli_mu(self, tenant: str) -> int:
        """Work of a tenant that was let in: charged, or held."""
        return self.settled_milli_mu[tenant] + self.held_milli_mu[tenant]

    def since(self, before: RouterBooks) -> RouterBooks:
        """The same for a stretch of time: counters less what they were; gauges as they are."""
        finished = Counter(self.finished)
        finished.subtract(before.finished)
        settled = Counter(self.settled_milli_mu)
        settled.subtract(before.settled_milli_mu)
        received = self.received - before.received
        return RouterBooks(received, +finished, self.in_flight, self.open_holds, +settled, self.held_milli_mu)


def samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    """All samples of a /metrics page: (name, labels, value)."""
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def value(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels; 0 without any."""
    return sum(
        number
        for found, having, number in samples(text)
        if found == name and all(having.get(key) == wanted for key, wanted in labels.items())
    )


def router_books(text: str) -> RouterBooks:
    """Reads a router's /metrics page."""
    finished: Counter[tuple[str, str, str]] = Counter()
    settled: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for name, labels, number in samples(text):
        tenant = labels.get("tenant", "")
        if name == _ROUTER + "requests_finished_total":
            finished[tenant, labels["outcome"], labels["reason"]] += int(number)
        elif name == _ROUTER + "settled_milli_mu_total":
            settled[tenant] += int(number)
        elif name == _ROUTER + "held_milli_mu":
            held[tenant] += int(number)
    return RouterBooks(
        received=int(value(text, _ROUTER + "requests_received_total")),
        finished=finished,
        in_flight=int(value(text, _ROUTER + "requests_in_flight")),
        open_holds=int(value(text, _ROUTER + "open_holds")),
        settled_milli_mu=settled,
        held_milli_mu=held,
    )
