"""What every part of the key space asks for, from what the replicas report.

Agents report averages that halve in HALF_LIFE_S. When a replica vanishes, its part of the sum vanishes with it,
although the requests only go elsewhere; so a sum never falls faster here than it would if requests had stopped coming.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from control_plane.core.sharding.values import KeyLoad, Server, View
from model_units.units import REPLICA_CAPACITY

HALF_LIFE_S: Final = 20.0
"""Of the averages that agents report. Source: engine.v1.KeyLoad.rate_milli_mu_per_minute."""

ABSURD_TIMES: Final = 20
"""A replica that says that more than this many times its capacity arrives there is not believed beyond it."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Load by part of the key space at one moment.

    Attributes:
        parts: First key of every part with load, rising.
        rates: Their loads, mMU per minute, in the same order.
        tenants: Whose they are, as far as it is known, in the same order.
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
        self._rates: dict[int, float] = {}
        self._at_ms = 0

    def read(self, view: View, now_ms: int) -> Demand:
        """The demand now.

        Args:
            view: What the replicas reported.
            now_ms: Wall clock. A clock that went back counts as one that stands still.
        """
        known = {server.replica_id: server for server in view.servers}
        rates: dict[int, float] = {}
        tenants: dict[int, str] = {}
        warm: dict[str, list[tuple[int, int]]] = {}
        busy: dict[str, list[int]] = {}
        reported: dict[str, int] = {}
        for replica_id in sorted(view.loads.keys() & known.keys()):
            loads = view.loads[replica_id]
            scale = _believed(known[replica_id], loads)
            total = 0.0
            for each in loads:
                rate = max(0, each.rate) * scale
                rates[each.first_key] = rates.get(each.first_key, 0.0) + rate
                total += rate
                if each.tenant_id:
                    tenants[each.first_key] = each.tenant_id
            warm[replica_id] = [(each.first_key, each.warm_tokens) for each in loads if each.warm_tokens > 0]
            busy[replica_id] = sorted(each.first_key for each in loads if each.in_flight > 0)
            reported[replica_id] = round(total)
        passed_s = max(0, now_ms - self._at_ms) / 1_000
        self._at_ms = max(self._at_ms, now_ms)
        decay = 0.5 ** (passed_s / HALF_LIFE_S)
        for part, before in self._rates.items():
            if (still := before * decay) >= 1.0:
                rates[part] = max(rates.get(part, 0.0), still)
        self._rates = rates
        parts = sorted(rates)
        return Demand(
            parts,
            [rates[part] for part in parts],
            [tenants.get(part, "") for part in parts],
            warm,
            busy,
            reported,
        )


def _believed(server: Server, loads: Sequence[KeyLoad]) -> float:
    """How much of what a replica says is believed: 1, or less where it is absurd."""
    total = sum(max(0, each.rate) for each in loads)
    most = ABSURD_TIMES * (server.capacity if server.capacity > 0 else REPLICA_CAPACITY)
    return 1.0 if total <= most else most / total
