"""What the sharder made of a run: how even the replicas were, whom each tenant met, what moved and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from control_plane.core.sharding.values import Cause
from simulation.books import Rearrangement

if TYPE_CHECKING:
    from simulation.result import Result

_MOVES_TOLD = 8


@dataclass(frozen=True, slots=True)
class Evenness:
    """All replicas at one moment.

    Attributes:
        at_s: When, seconds of traffic.
        mean: Mean utilisation of those that were there, by the ten seconds before, each over its own capacity.
        worst: The highest over that mean; 1 is even, not a number where nothing was done.
    """

    at_s: float
    mean: float
    worst: float


@dataclass(frozen=True, slots=True)
class ShardingView:
    """The figures of a run.

    Attributes:
        evenness: One entry per time bucket while there was traffic, in order.
        footprints: Share of all replicas of its model that served a tenant in the whole run, by tenant that was served.
        dispatches: Attempts on replicas.
        misrouted: Those of them on a replica that the newest assignment did not give them.
        rearrangements: Every placement after a model's first one, in order.
        start_s: When traffic began, on their clock.
    """

    evenness: tuple[Evenness, ...]
    footprints: Mapping[str, float]
    dispatches: int
    misrouted: int
    rearrangements: tuple[Rearrangement, ...]
    start_s: float

    @property
    def misrouted_share(self) -> float:
        """Of all attempts."""
        return self.misrouted / self.dispatches if self.dispatches else 0.0

    def worst(self, quantile: float, *, from_s: float = 0.0, mean_min: float = 0.0) -> float:
        """A quantile of max/mean utilisation over time.

        Args:
            quantile: 0 to 1.
            from_s: Only from this moment on, seconds of traffic.
            mean_min: Only while the mean utilisation was this or more.

        Returns:
            Not a number where nothing is left.
        """
        values = [each.worst for each in self.evenness if each.at_s >= from_s and each.mean >= mean_min and each.mean]
        return float(np.quantile(values, quantile)) if values else float("nan")

    def even_again_s(self, after_s: float, limit: float, *, lasting_s: float = 15.0) -> float:
        """How long after a moment max/mean utilisation came below a limit and stayed there for a while.

        Args:
            after_s: The moment, seconds of traffic.
            limit: Of max/mean.
            lasting_s: For how long it must stay there.

        Returns:
            Seconds; infinite where it never did.
        """
        since: float | None = None
        for each in self.evenness:
            if each.at_s < after_s:
                continue
            if not each.worst <= limit:
                since = None
                continue
            since = each.at_s if since is None else since
            if each.at_s - since >= lasting_s:
                return since - after_s
        return float("inf")

    def churn(self, *causes: Cause, from_s: float = 0.0) -> list[float]:
        """Load that moved, as a share of all load, of every rearrangement in order.

        Args:
            causes: Only for these; for all where none is named.
            from_s: Only from this moment on, seconds of traffic.
        """
        began_s = self.start_s + from_s
        return [each.churn(*causes) for each in self.rearrangements if each.at_s >= began_s]

    def as_json(self) -> dict[str, object]:
        """Plain values; times are seconds of traffic."""
        shares = sorted(self.footprints.values())
        return {
            "max_over_mean": [
                {"at_s": each.at_s, "mean": each.mean, "worst": each.worst if np.isfinite(each.worst) else None}
                for each in self.evenness
            ],
            "footprint_median": float(np.median(shares)) if shares else None,
            "footprint_max": shares[-1] if shares else None,
            "footprints": dict(self.footprints),
            "dispatches": self.dispatches,
            "misrouted": self.misrouted,
            "misrouted_share": self.misrouted_share,
            "rearrangements": [_told(each, self.start_s) for each in self.rearrangements],
        }


def sharding_view(result: Result) -> ShardingView:
    """Reads the figures out of a result."""
    by_bucket: dict[int, list[float]] = {}
    end = result.scenario.settings.duration_s / result.bucket_s
    for track in result.tracks:
        for bucket, value in track.utilization:
            if bucket <= end:
                by_bucket.setdefault(bucket, []).append(value)
    return ShardingView(
        evenness=tuple(_evenness(bucket * result.bucket_s, by_bucket[bucket]) for bucket in sorted(by_bucket)),
        footprints=_footprints(result),
        dispatches=sum(book.dispatched.total() for book in result.books.values()),
        misrouted=sum(book.misrouted for book in result.books.values()),
        rearrangements=result.rearrangements,
        start_s=result.start_s,
    )


def _evenness(at_s: float, values: Sequence[float]) -> Evenness:
    mean = sum(values) / len(values)
    return Evenness(at_s, mean, max(values) / mean if mean else float("nan"))


def _footprints(result: Result) -> dict[str, float]:
    replicas: dict[str, int] = {}
    for track in result.tracks:
        replicas[track.model_id] = replicas.get(track.model_id, 0) + 1
    return {
        tenant.id: len(result.books[tenant.id].dispatched) / replicas[tenant.model]
        for tenant in result.scenario.tenants
        if result.books[tenant.id].dispatched
    }


def _told(each: Rearrangement, start_s: float) -> dict[str, object]:
    return {
        "at_s": each.at_s - start_s,
        "model": each.model_id,
        "reason": each.reason,
        "load_mu_per_minute": each.load / 1_000.0,
        "churn": each.churn(),
        "churn_by_cause": {
            cause.value: each.churn(cause) for cause in Cause if any(m.cause is cause for m in each.moves)
        },
        "moves": [
            {
                "tenant": move.tenant_id,
                "from": move.from_replica_id,
                "to": move.to_replica_id,
                "cause": move.cause.value,
                "load_mu_per_minute": move.load / 1_000.0,
                "warm_tokens": move.warm_tokens,
            }
            for move in each.moves[:_MOVES_TOLD]
        ],
        "moves_in_all": len(each.moves),
    }
