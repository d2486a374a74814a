"""The first sharder: which replicas serve which workload.

A workload is a tenant with a reservation on a model. It gets a subset of the READY replicas, large enough that its
reservation fills half of it and never under three, so that sessions meet warm caches and one tenant's trouble stays
small. Members are chosen by rendezvous hashing: every replica has a score for the workload and the highest scores win,
so a replica that comes or goes moves only the workloads it is about, and a larger subset contains the smaller one.

Example: 100 MU/min per replica and a reservation of 300 MU/min: ceil(300 / (0.5 x 100)) = 6 replicas.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from model_units.units import MilliModelUnitsPerMinute as Rate

# A workload at its reservation fills at most this part of its subset.
FILL_PART = (1, 2)
SUBSET_SIZE_MIN = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A READY replica.

    Attributes:
        replica_id: Its id.
        seat: What stays when it is replaced: the actuator's slot, or the id where there is none.
        capacity: Milli-MU per minute.
    """

    replica_id: str
    seat: str
    capacity: Rate


@dataclass(frozen=True, slots=True)
class Placement:
    """Who serves whom on one model.

    Attributes:
        incarnation: Changes when the assigner starts from nothing.
        number: Grows with every change.
        subsets: Replica ids by tenant, each sorted.
        default: For every other tenant, sorted.
        reason: Why it was computed, one sentence.
    """

    incarnation: int
    number: int
    subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default: tuple[str, ...] = ()
    reason: str = ""

    def members(self) -> set[str]:
        """Every replica it names."""
        return set(self.default).union(*self.subsets.values())


def assign(
    model_id: str,
    candidates: Sequence[Candidate],
    workloads: Mapping[str, Rate],
    previous: Placement | None,
    *,
    incarnation: int,
    now_ms: int,
) -> Placement | None:
    """Computes a model's placement.

    Args:
        model_id: The model.
        candidates: Its READY replicas, in any order.
        workloads: Reserved rate by tenant.
        previous: The placement in force, or None.
        incarnation: For a model without a placement: larger than any before.
        now_ms: Wall clock; only makes numbers comparable with the time.

    Returns:
        The new placement; None when nothing changes, or when no replica is READY: an empty view is not
        "everyone is dead", and routers keep the last placement.
    """
    if not candidates:
        return None
    subsets = {
        tenant_id: _subset(model_id, tenant_id, candidates, subset_size(rate, candidates))
        for tenant_id, rate in sorted(workloads.items())
    }
    default = tuple(sorted(candidate.replica_id for candidate in candidates))
    if previous is None:
        return Placement(incarnation, now_ms, subsets, default, "first assignment of the model")
    if (subsets, default) == (dict(previous.subsets), previous.default):
        return None
    number = max(now_ms, previous.number + 1)
    return Placement(previous.incarnation, number, subsets, default, _reason(previous, subsets, default))


def subset_size(rate: Rate, candidates: Sequence[Candidate]) -> int:
    """How many replicas a workload gets: clamp(ceil(rate / (FILL_PART x mean capacity)), SUBSET_SIZE_MIN, all)."""
    capacity = sum(candidate.capacity for candidate in candidates)
    needed = 0
    if capacity > 0:
        needed = -(-rate * FILL_PART[1] * len(candidates) // (FILL_PART[0] * capacity))
    return min(len(candidates), max(SUBSET_SIZE_MIN, needed))


def _subset(model_id: str, tenant_id: str, candidates: Iterable[Candidate], size: int) -> tuple[str, ...]:
    ranked = sorted(candidates, key=lambda c: (_score(model_id, tenant_id, c.seat), c.replica_id))
    return tuple(sorted(candidate.replica_id for candidate in ranked[:size]))


def _score(model_id: str, tenant_id: str, seat: str) -> bytes:
    """Uniform, the same on every machine; lower is better."""
    return hashlib.blake2b(f"{model_id}\0{tenant_id}\0{seat}".encode(), digest_size=8).digest()


def _reason(previous: Placement, subsets: Mapping[str, tuple[str, ...]], default: tuple[str, ...]) -> str:
    came, left = set(default) - set(previous.default), set(previous.default) - set(default)
    parts = []
    if came:
        parts.append(f"{len(came)} replica{'s' if len(came) > 1 else ''} came")
    if left:
        parts.append(f"{len(left)} replica{'s' if len(left) > 1 else ''} left")
    if not parts:
        changed = {t for t in subsets.keys() | previous.subsets.keys() if subsets.get(t) != previous.subsets.get(t)}
        parts.append(f"reservations of {len(changed)} tenant{'s' if len(changed) > 1 else ''} changed")
    return " and ".join(parts)


class StormWait:
    """Collects removals for a moment, so that ten crashes move workloads once and not ten times.

    Args:
        wait_ns: How long to collect.
    """

    def __init__(self, wait_ns: int) -> None:
        self._wait_ns = wait_ns
        self._since_ns: int | None = None

    def remaining_ns(self, removal_pending: bool, now_ns: int) -> int:
        """How long to wait before the next placement is written; 0 means write now.

        Args:
            removal_pending: Whether a replica of the placement in force is not READY any more.
            now_ns: Current monotonic time.
        """
        if not removal_pending:
            self._since_ns = None
            return 0
        if self._since_ns is None:
            self._since_ns = now_ns
        remaining = max(0, self._since_ns + self._wait_ns - now_ns)
        if remaining == 0:
            self._since_ns = None
        return remaining
