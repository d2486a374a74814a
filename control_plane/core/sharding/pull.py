"""How much of a subset's load each replica draws, beside its capacity.

Routers send a request where it starts soonest, so of two replicas a fast one draws more than its part, and one that is
next to a busy one does too. What a replica is measured to serve, over what it would by capacity alone, is its pull; a
placement that is even with the pulls of now is even with the routers of now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from control_plane.core.sharding.draft import Draft

GAIN: Final = 0.3
"""How much of what is found in a round is believed: loads are averages that wander."""

PULL_MAX: Final = 2.0
"""A pull is between one over this and this: more is a moment and not a replica's nature."""

_MEASURED_MIN: Final = 0.1  # of the capacity: below, what a replica draws is chance

SETTLED_S: Final = 30.0
"""After a change of its slices a replica is not judged for this long: what it is judged by halves in 20 s. With twice
as long, a fleet that is always being evened out a little learns too slowly."""

_SETTLED_MS: Final = round(SETTLED_S * 1_000)


class Pulls:
    """What is known of the replicas of one model.

    Attributes:
        by_replica: Pulls by replica id; 1 where nothing is known.
    """

    def __init__(self) -> None:
        self.by_replica: dict[str, float] = {}
        self._judged_ms: dict[str, int] = {}

    def learn(self, draft: Draft, reported: Mapping[str, int], now_ms: int) -> dict[str, float]:
        """Pulls after a round, to be taken over when it is done.

        Args:
            draft: The placement that was in force, seeded, nothing changed yet.
            reported: Load by replica id, mMU per minute.
            now_ms: Wall clock.
        """
        pulls: dict[str, float] = {}
        for at, server in enumerate(draft.servers):
            pull = self.by_replica.get(server.replica_id, 1.0)
            found, thought = reported.get(server.replica_id, 0), float(draft.measured[at])
            enough = _MEASURED_MIN * draft.capacities[at]
            settled = now_ms >= self._judged_ms.setdefault(server.replica_id, now_ms + _SETTLED_MS)
            if settled and found > enough and thought > enough:
                pull = float(np.clip(pull * (found / thought) ** GAIN, 1.0 / PULL_MAX, PULL_MAX))
            pulls[server.replica_id] = pull
        return pulls

    def take(self, pulls: dict[str, float], touched: Iterable[str], now_ms: int) -> None:
        """Takes over what was learned in a round that is done.

        Args:
            pulls: From `learn`.
            touched: Replicas whose slices it changed.
            now_ms: Wall clock.
        """
        self.by_replica = pulls
        later = dict.fromkeys(touched, now_ms + _SETTLED_MS)
        self._judged_ms = {**{key: self._judged_ms[key] for key in pulls if key in self._judged_ms}, **later}
