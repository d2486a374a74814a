"""What every part of the key space asks for, from what the replicas report.

Agents report averages that halve in HALF_LIFE_S. When a replica vanishes or falls silent, its requests go elsewhere and
are counted there, as slowly as averages rise; so what it said last goes on counting, as slowly as averages fall.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from common.shard_map import KEYS
from control_plane.core.sharding.values import KeyLoad, Server, View
from model_units.units import REPLICA_CAPACITY

HALF_LIFE_S: Final = 20.0
"""Of the averages that agents report. Source: engine.v1.KeyLoad.rate_milli_mu_per_minute."""

FORGOTTEN_S: Final = 5 * HALF_LIFE_S
"""After this nothing is left of a silent replica's last word: 3 % of it."""

ABSURD_TIMES: Final = 20
"""A replica that says that more than this many times its capacity arrives there is not believed beyond it."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Load by part of the key space at one moment.

    Attributes:
        parts: First key of every part with load, rising.
        rates: Their loads, mMU per minute, in the same order.
        tenants: Tenants that are known here, sorted; their caches may be all that is left of them.
        warm: Warm tokens by replica id and first key.
        busy: First keys of parts with requests in flight, rising, by replica id.
        reported: Load by replica id, mMU per minute.
    """

    parts: Sequence[int] = ()
    rates: Sequence[float] = ()
    tenants: Sequence[str] = ()
    warm: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    busy: Mapping[str, Sequence[int]] = field(default_factory=dict)
    reported: Mapping[str, int] = field(default_factory=dict)

    def load(self, first_key: int, end_key: int) -> float:
        """Load of the keys from `first_key` to one before `end_key`, mMU per minute."""
        return sum(self.rates[bisect_left(self.parts, first_key) : bisect_left(self.parts, end_key)])

    def loads(self, firsts: Sequence[int]) -> list[float]:
        """Load of every slice, mMU per minute, by the slices' first keys, rising: each ends where the next begins."""
        return [self.load(first, end) for first, end in zip(firsts, [*firsts[1:], KEYS], strict=True)]

    def within(self, first_key: int, end_key: int) -> Iterable[tuple[int, float]]:
        """First key and load of every part that begins in the range, rising."""
        low, high = bisect_left(self.parts, first_key), bisect_left(self.parts, end_key)
        return zip(self.parts[low:high], self.rates[low:high], strict=True)

    def warm_by_slice(self, firsts: Sequence[int]) -> dict[tuple[int, str], int]:
        """Warm tokens by (place of the slice, replica id).

        Args:
            firsts: First keys of the slices, rising, the first 0.
        """
        warm: dict[tuple[int, str], int] = {}
        for replica_id, parts in self.warm.items():
            for first_key, tokens in parts:
                at = (bisect_right(firsts, first_key) - 1, replica_id)
                warm[at] = warm.get(at, 0) + tokens
        return warm


class DemandBook:
    """Follows the demand of one model from round to round."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[int, float, Sequence[KeyLoad]]] = {}
        self._read_ms: int | None = None
        self._age_ms = 0

    def read(self, view: View, now_ms: int) -> Demand:
        """The demand now.

        Args:
            view: What the replicas reported.
            now_ms: Wall clock. A clock that went back counts as one that stands still.
        """
        self._age_ms += max(0, now_ms - self._read_ms) if self._read_ms is not None else 0
        self._read_ms = now_ms
        known = {server.replica_id: server for server in view.servers}
        said = sorted(view.loads.keys() & known.keys())
        warm: dict[str, list[tuple[int, int]]] = {}
        busy: dict[str, list[int]] = {}
        reported: dict[str, int] = {}
        for replica_id in said:
            parts = view.loads[replica_id]
            total = sum([each.rate for each in parts if each.rate > 0])
            scale = _believed(known[replica_id], total)
            self._heard[replica_id] = (self._age_ms, scale, parts)
            warm[replica_id] = [(each.first_key, each.warm_tokens) for each in parts if each.warm_tokens > 0]
            busy[replica_id] = sorted([each.first_key for each in parts if each.in_flight > 0])
            reported[replica_id] = round(total * scale)
        rates: defaultdict[int, float] = defaultdict(float)
        tenants: set[str] = set()
        for replica_id, (heard_ms, scale, parts) in sorted(self._heard.items()):
            age_s = (self._age_ms - heard_ms) / 1_000
            if age_s > FORGOTTEN_S:
                del self._heard[replica_id]
                continue
            weight = scale * 0.5 ** (age_s / HALF_LIFE_S)
            for each in parts:
                if each.rate > 0:
                    rates[each.first_key] += each.rate * weight
            tenants.update([each.tenant_id for each in parts])
        keys = sorted(rates)
        return Demand(keys, [rates[key] for key in keys], sorted(tenants - {""}), warm, busy, reported)


def _believed(server: Server, total: int) -> float:
    """How much of what a replica says is believed: 1, or less where its total of mMU per minute is absurd."""
    most = ABSURD_TIMES * (server.capacity if server.capacity > 0 else REPLICA_CAPACITY)
    return 1.0 if total <= most else most / total
