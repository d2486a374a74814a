"""The candidates of one workload, sorted once by who may be chosen and not again for every request."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from data_plane.router.core.candidate import Candidate, Health
from data_plane.router.core.prefix_index import PrefixIndex

PANIC_SHARE: Final = 0.5
"""With fewer than this share of replicas healthy, the router doubts the alarms rather than the replicas."""

AGED_MS: Final = 50.0
"""How often loads are brought up to the time gone by since their reports: a twentieth of a report's interval."""

_AGED_NS: Final = int(AGED_MS * 1e6)

# Looking a member up on an enum class costs more than the rest of a comparison.
_READY: Final = Health.READY
_CLOSED: Final = Health.CLOSED


class Pool:
    """The replicas of one workload, as a policy picks among them.

    Loads go on changing in it; after anybody's health changed it must be made anew, as `Fleet.candidates` does.

    Args:
        candidates: The workload's subset.
        prefixes: What the caches of the model's replicas hold; None where nobody keeps prefixes.

    Attributes:
        members: The subset.
        prefixes: As given.
        eligible: Those that may be chosen: the ready ones, or all open ones where too few are.
        panic: Health is ignored because too few replicas have it.
        cache_mask: The cache bits of the eligible ones.
        aged_ns: When their loads were last brought up to date.
        order: The places in `eligible`, rising.
        places: Where in `eligible` the replica with a cache bit stands.
    """

    __slots__ = ("aged_ns", "cache_mask", "eligible", "members", "order", "panic", "places", "prefixes")

    def __init__(self, candidates: Iterable[Candidate], prefixes: PrefixIndex | None = None) -> None:
        self.members = list(candidates)
        self.prefixes = prefixes
        self.aged_ns = 0
        eligible, self.panic = usable(self.members)
        self._allow(eligible)

    def _allow(self, eligible: list[Candidate]) -> None:
        self.eligible = eligible
        self.order = list(range(len(eligible)))
        self.cache_mask = 0
        self.places: dict[int, int] = {}
        for place, each in enumerate(eligible):
            if each.cache_bit:
                self.cache_mask |= each.cache_bit
                self.places[each.cache_bit] = place

    def age(self, now_ns: int) -> None:
        """Brings the loads up to now, where that was not done lately: it costs more than a choice.

        Args:
            now_ns: Monotonic now; it may have gone backwards.
        """
        if 0 <= now_ns - self.aged_ns < _AGED_NS:
            return
        self.aged_ns = now_ns
        for each in self.eligible:
            if not 0 <= now_ns - each.aged_ns < _AGED_NS:
                each.age(now_ns)

    def without(self, excluded: Collection[str]) -> Pool:
        """This pool without some of its replicas; whether it is a panic is judged with them.

        Args:
            excluded: Replica ids.
        """
        if not excluded:
            return self
        rest = Pool([each for each in self.eligible if each.replica_id not in excluded], self.prefixes)
        rest._allow(rest.members)
        rest.panic = self.panic
        return rest


def usable(candidates: Sequence[Candidate]) -> tuple[list[Candidate], bool]:
    """Those that may be chosen: the ready ones, or all open ones where too few are, and then in a panic (True)."""
    ready = [each for each in candidates if each.health is _READY]
    if len(ready) < len(candidates):
        open_ = [each for each in candidates if each.health is not _CLOSED]
        if len(ready) < PANIC_SHARE * len(open_):
            return open_, True
    return ready, False


def choose_pool(subset: Iterable[str], known: Collection[str]) -> list[str]:
    """The replicas a workload may use.

    Args:
        subset: Its replicas by the assignment; empty means there is no assignment.
        known: All replicas of the model.

    Returns:
        The known part of the subset; everything known where that is empty, because an assignment that names only
        replicas that are gone is out of date, not an order to refuse.
    """
    return [replica_id for replica_id in subset if replica_id in known] or sorted(known)
