"""What a simulation found: checked accounts, and the numbers made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from data_plane.router.core.accounts import Outcome
from fairlead.errors import Reason
from simulation.books import Incident, Rearrangement, ReplicaTrack, TenantBook
from simulation.scenario import Scenario, TenantSpec
from simulation.sharding_view import ShardingView, sharding_view

TOTAL: Final = "total"
"""Name of the sum over all tenants."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """50th, 95th and 99th percentile, seconds; not a number where nothing was measured."""

    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One tenant's results, or all tenants' together.

    Attributes:
        name: The tenant, or TOTAL.
        received: Requests that came.
        admitted: Those that got their hold.
        refused: By reason.
        completed: Answered to their end.
        failed: By reason.
        cancelled: Given up by the client.
        moved: Attempts on another replica.
        repeated: Requests that had been refused before.
        ttft: Time to first token.
        tpot: Time per output token.
        settled_mu: What was charged, MU.
        quota_used: Settled work over what the reservation comes to while there is traffic; not a number without one.
        cached_share: Prompt tokens found in a prefix cache.
        output_tokens: Delivered.
    """

    name: str
    received: int
    admitted: int
    refused: Mapping[str, int]
    completed: int
    failed: Mapping[str, int]
    cancelled: int
    moved: int
    repeated: int
    ttft: Quantiles
    tpot: Quantiles
    settled_mu: float
    quota_used: float
    cached_share: float
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """Everything a run left behind. Times count from the start of the loop; traffic began at `start_s`.

    Attributes:
        scenario: What was run.
        start_s: When traffic began.
        end_s: When the last request had ended.
        bucket_s: Width of the time buckets, the first of which begins at `start_s`.
        books: By tenant.
        tracks: Every replica there ever was.
        incidents: In order.
        events: Events of the loop.
        settled_by_holds_milli_mu: What the routers' buckets say was settled.
        open_holds: Holds that nobody ended.
        left_in_flight: Requests that still are at a replica.
        notes: What was assumed, put right or filled in of the workloads, one sentence each.
        rearrangements: Every placement of the sharder after a model's first one, in order.
    """

    scenario: Scenario
    start_s: float
    end_s: float
    bucket_s: float
    books: Mapping[str, TenantBook]
    tracks: tuple[ReplicaTrack, ...]
    incidents: tuple[Incident, ...]
    events: int
    settled_by_holds_milli_mu: int
    open_holds: int
    left_in_flight: int
    notes: tuple[str, ...] = ()
    rearrangements: tuple[Rearrangement, ...] = ()

    @property
    def requests(self) -> int:
        """Requests received."""
        return sum(book.received for book in self.books.values())

    @property
    def too_late(self) -> int:
        """Requests refused at once because no replica could have answered before their deadline."""
        return sum(book.ended[Outcome.REFUSED, Reason.DEADLINE_TOO_SHORT.value] for book in self.books.values())

    def sharding(self) -> ShardingView:
        """How even the replicas were, whom each tenant met, what moved and why."""
        return sharding_view(self)

    def check(self) -> None:
        """Holds the accounts against each other.

        Raises:
            RuntimeError: A request was lost or counted twice, or money was: a defect of the simulator or of a core.
        """
        for name, book in self.books.items():
            ended = sum(book.ended.values())
            if book.received != ended:
                raise RuntimeError(f"tenant {name!r}: {book.received} requests received, {ended} ended")
        settled = sum(book.settled_milli_mu for book in self.books.values())
        if settled != self.settled_by_holds_milli_mu:
            raise RuntimeError(f"{settled} mMU charged, {self.settled_by_holds_milli_mu} settled in the buckets")
        if self.open_holds or self.left_in_flight:
            raise RuntimeError(f"{self.open_holds} holds and {self.left_in_flight} requests are left at the end")

    def summaries(self) -> list[Summary]:
        """Of every tenant, and of all together, which comes last."""
        specs = {tenant.id: tenant for tenant in self.scenario.tenants}
        rows = [self._summary(name, [book], self._reserved_mu(specs[name])) for name, book in self.books.items()]
        reserved = sum(self._reserved_mu(tenant) for tenant in self.scenario.tenants)
        return [*rows, self._summary(TOTAL, list(self.books.values()), reserved)]

    def utilization(self, track: ReplicaTrack) -> float:
        """Work a replica served over what it could have, while it lived."""
        return track.served_milli_mu * 60.0 / (track.capacity * track.lived_s) if track.lived_s else float("nan")

    def as_json(self) -> dict[str, object]:
        """Everything of the summaries as plain values; what is not a number becomes null."""
        return {
            "scenario": self.scenario.settings.name,
            "seed": self.scenario.settings.seed,
            "simulated_s": self.end_s - self.start_s,
            "events": self.events,
            "tenants": [summary_as_json(summary) for summary in self.summaries()],
            "replicas": [
                {
                    "replica_id": track.replica_id,
                    "utilization": _finite(self.utilization(track)),
                    "requests": track.requests,
                    "preemptions": track.preemptions,
                    "lived_s": track.lived_s,
                }
                for track in self.tracks
            ],
            "too_late": self.too_late,
            "sharding": self.sharding().as_json(),
            "notes": list(self.notes),
            "incidents": [
                {"at_s": incident.at_s - self.start_s, "kind": incident.kind, "text": incident.text}
                for incident in self.incidents
            ],
        }

    def _reserved_mu(self, tenant: TenantSpec) -> float:
        """What a tenant's reservation comes to while it has traffic, MU."""
        duration_s = self.scenario.settings.duration_s
        active_s = min(tenant.end_s or duration_s, duration_s) - tenant.start_s
        return tenant.reservation_mu_per_minute * max(0.0, active_s) / 60.0

    def _summary(self, name: str, books: list[TenantBook], reserved_mu: float) -> Summary:
        settled_mu = sum(book.settled_milli_mu for book in books) / 1_000.0
        read = sum(book.input_tokens for book in books)
        return Summary(
            name=name,
            received=sum(book.received for book in books),
            admitted=sum(book.admitted for book in books),
            refused=_added(book.reasons(Outcome.REFUSED) for book in books),
            completed=sum(book.count(Outcome.COMPLETED) for book in books),
            failed=_added(book.reasons(Outcome.FAILED) for book in books),
            cancelled=sum(book.count(Outcome.CANCELLED) for book in books),
            moved=sum(book.moved for book in books),
            repeated=sum(book.repeated for book in books),
            ttft=quantiles(np.concatenate([np.array(book.ttft_s) for book in books])),
            tpot=quantiles(np.concatenate([np.array(book.tpot_s) for book in books])),
            settled_mu=settled_mu,
            quota_used=settled_mu / reserved_mu if reserved_mu else float("nan"),
            cached_share=sum(book.cached_tokens for book in books) / read if read else float("nan"),
            output_tokens=sum(book.output_tokens for book in books),
        )


def quantiles(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Quantiles:
    """The quantiles that are reported."""
    if not len(values):
        return Quantiles(float("nan"), float("nan"), float("nan"))
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return Quantiles(float(p50), float(p95), float(p99))


def summary_as_json(summary: Summary) -> dict[str, object]:
    """A summary as plain values."""
    return {
        "name": summary.name,
        "received": summary.received,
        "admitted": summary.admitted,
        "refused": dict(summary.refused),
        "completed": summary.completed,
        "failed": dict(summary.failed),
        "cancelled": summary.cancelled,
        "moved": summary.moved,
        "repeated": summary.repeated,
        **{f"ttft_{name}": _finite(getattr(summary.ttft, name)) for name in ("p50_s", "p95_s", "p99_s")},
        **{f"tpot_{name}": _finite(getattr(summary.tpot, name)) for name in ("p50_s", "p95_s", "p99_s")},
        "settled_mu": summary.settled_mu,
        "quota_used": _finite(summary.quota_used),
        "cached_share": _finite(summary.cached_share),
        "output_tokens": summary.output_tokens,
    }


def _added(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for reason, number in part.items():
            total[reason] = total.get(reason, 0) + number
    return dict(sorted(total.items()))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
