"""What came of a replay: pure counting."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fairlead.errors import (
    DeadlineExceededError,
    FairleadError,
    InternalError,
    RequestCancelledError,
    UnavailableError,
)


class Outcome(enum.StrEnum):
    """How one request ended; every request that was sent ends exactly one way."""

    OK = "ok"
    """The whole answer arrived."""
    REFUSED = "refused"
    """The platform did not take it: quota, limits, rights."""
    FAILED = "failed"
    """It broke after it was taken, or nobody was there to take it."""
    CANCELLED = "cancelled"
    """It was given up on this side."""


def outcome_of(error: FairleadError) -> Outcome:
    """Sorts an error: broken, given up, or refused."""
    if isinstance(error, RequestCancelledError):
        return Outcome.CANCELLED
    if isinstance(error, UnavailableError | InternalError | DeadlineExceededError):
        return Outcome.FAILED
    return Outcome.REFUSED


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that was sent."""

    tenant: str
    """Name of the target."""
    request_id: str
    """Its id."""
    outcome: Outcome
    """How it ended."""
    reason: str
    """The error's reason; empty when it went well."""
    lag_s: float
    """How late it was sent after its due time, seconds."""
    ttft_s: float | None
    """Time from sending to the first token, seconds; None without one."""
    tpot_s: float | None
    """Time per token after the first piece, seconds; None without a second piece."""
    input_tokens: int
    """Prompt tokens as the engine counted them; 0 where unknown."""
    output_tokens: int
    """Tokens that arrived."""
    estimated_milli_mu: int
    """Held at admission; 0 where unknown."""
    settled_milli_mu: int
    """Charged, as the platform said; 0 where it could not say."""
    cost_known: bool
    """Whether the platform said what was charged, or it is certain that nothing was."""
    attempts: int
    """Tries it took."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A distribution in milliseconds; None where nothing was measured."""

    p50_ms: float | None
    """Median."""
    p95_ms: float | None
    """19 of 20 are no longer."""
    p99_ms: float | None
    """99 of 100 are no longer."""
    count: int
    """Values measured."""


@dataclass(frozen=True, slots=True)
class TenantReport:
    """The requests of one tenant, or of all together."""

    tenant: str
    """Name of the target; "total" for all."""
    received: int
    """Requests sent to the platform, counted when sent."""
    admitted: int
    """Those that were taken: ok plus failed."""
    ok: int
    """Whole answers."""
    refused: dict[str, int]
    """Not taken, by reason."""
    failed: dict[str, int]
    """Broken after they were taken, by reason."""
    cancelled: int
    """Given up on this side."""
    difference: int
    """received - admitted - refused - cancelled: 0, or something was lost."""
    not_sent: int
    """Due, but held back because too many were in flight."""
    ttft: Percentiles
    """Time to first token."""
    tpot: Percentiles
    """Time per output token after the first."""
    input_tokens: int
    """Prompt tokens, as the engines counted them."""
    output_tokens: int
    """Tokens that arrived."""
    output_tokens_per_s: float
    """Over the whole replay."""
    estimated_milli_mu: int
    """Sum of what was held at admission."""
    settled_milli_mu: int
    """Sum of what was charged."""
    cost_unknown: int
    """Requests whose charge this side never learned: cancelled, or past their deadline."""
    retried: int
    """Requests that took more than one try."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What came of a replay."""

    total: TenantReport
    """All tenants together."""
    tenants: tuple[TenantReport, ...]
    """Each tenant, in the order of the targets."""
    notes: tuple[str, ...]
    """What a reader must know: how lengths were scaled, what was put right."""
    speed: float
    """Recorded seconds per real second."""
    wall_s: float
    """Real duration, seconds."""
    lag_p99_ms: float | None
    """How late requests were sent: large means the machine that replays was the bottleneck."""
    interrupted: bool
    """Whether it was stopped before its end."""
    samples: tuple[Sample, ...]
    """Every request that was sent, in order of their ends."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples, ready for JSON. Field names are stable."""
        return {
            "total": asdict(self.total),
            "tenants": [asdict(tenant) for tenant in self.tenants],
            "notes": list(self.notes),
            "speed": self.speed,
            "wall_s": round(self.wall_s, 3),
            "lag_p99_ms": self.lag_p99_ms,
            "interrupted": self.interrupted,
        }


def percentiles(values_s: Iterable[float | None]) -> Percentiles:
    """Summarises times.

    Args:
        values_s: Seconds; None is left out.

    Returns:
        Nearest-rank percentiles in milliseconds.
    """
    ordered = sorted(value for value in values_s if value is not None)

    def rank(share: float) -> float | None:
        if not ordered:
            return None
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000, 3)

    return Percentiles(rank(0.50), rank(0.95), rank(0.99), len(ordered))


def tenant_report(
    tenant: str, samples: Sequence[Sample], *, received: int, not_sent: int, wall_s: float
) -> TenantReport:
    """Counts the requests of one tenant.

    Args:
        tenant: Name of the target.
        samples: Its requests.
        received: How many were sent, counted independently of `samples`.
        not_sent: How many were held back.
        wall_s: Duration of the replay, seconds.
    """
    refused = Counter(sample.reason for sample in samples if sample.outcome is Outcome.REFUSED)
    failed = Counter(sample.reason for sample in samples if sample.outcome is Outcome.FAILED)
    ok = sum(sample.outcome is Outcome.OK for sample in samples)
    cancelled = sum(sample.outcome is Outcome.CANCELLED for sample in samples)
    admitted = ok + failed.total()
    output_tokens = sum(sample.output_tokens for sample in samples)
    return TenantReport(
        tenant=tenant,
        received=received,
        admitted=admitted,
        ok=ok,
        refused=dict(sorted(refused.items())),
        failed=dict(sorted(failed.items())),
        cancelled=cancelled,
        difference=received - admitted - refused.total() - cancelled,
        not_sent=not_sent,
        ttft=percentiles(sample.ttft_s for sample in samples),
        tpot=percentiles(sample.tpot_s for sample in samples),
        input_tokens=sum(sample.input_tokens for sample in samples),
        output_tokens=output_tokens,
        output_tokens_per_s=round(output_tokens / wall_s, 1) if wall_s > 0 else 0.0,
        estimated_milli_mu=sum(sample.estimated_milli_mu for sample in samples),
        settled_milli_mu=sum(sample.settled_milli_mu for sample in samples),
        cost_unknown=sum(not sample.cost_known for sample in samples),
        retried=sum(sample.attempts > 1 for sample in samples),
    )
