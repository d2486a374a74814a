"""Keys of death: a request that kills its replica is sent again, and kills the next one.

Two crashes within WITHIN_S that had requests of the same slice in flight freeze that slice for FROZEN_S: it keeps its
seats, replicas that come back to them included, and gets no fresh ones. What two crashes have in common by chance is
told from that by its amount: where more than GUILTY_SHARE of the load was on both, it is the machines and not a key.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from control_plane.core.sharding.demand import Demand

WITHIN_S: Final = 300.0
"""A client that sends a deadly request again does so within minutes."""

FROZEN_S: Final = 600.0
"""As long as routers refuse a request that killed replicas."""

GUILTY_SHARE: Final = 0.5
"""More of the load than this is not one workload's doing."""


@dataclass(frozen=True, slots=True)
class Crash:
    """A replica that vanished without having been drained.

    Attributes:
        replica_id: Which.
        at_ms: When it was missed, wall clock.
        busy: First keys of the parts that had requests in flight on it.
    """

    replica_id: str
    at_ms: int
    busy: tuple[int, ...]


class Deaths:
    """Remembers crashes and finds what they have in common."""

    def __init__(self) -> None:
        self._crashes: deque[Crash] = deque(maxlen=1_024)

    def crashed(self, crash: Crash) -> None:
        """Notes a crash."""
        self._crashes.append(crash)

    def suspects(self, firsts: Sequence[int], demand: Demand, now_ms: int) -> Mapping[int, tuple[str, ...]]:
        """Slices that two or more recent crashes share.

        Args:
            firsts: First keys of the slices, rising, the first 0.
            demand: Load now.
            now_ms: Wall clock.

        Returns:
            The crashed replicas by place of the slice; empty where they share too much for one key's doing.
        """
        while self._crashes and now_ms - self._crashes[0].at_ms > WITHIN_S * 1_000:
            self._crashes.popleft()
        victims: dict[int, set[str]] = {}
        for crash in self._crashes:
            for place in {bisect_right(firsts, key) - 1 for key in crash.busy}:
                victims.setdefault(place, set()).add(crash.replica_id)
        shared = {place: tuple(sorted(ids)) for place, ids in victims.items() if len(ids) > 1}
        total = sum(demand.rates)
        loads = demand.loads(firsts)
        guilty = sum(loads[place] for place in shared)
        return shared if total > 0.0 and guilty <= GUILTY_SHARE * total else {}
