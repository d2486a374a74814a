"""Each in turn, per tenant: what many balancers do by default, and blind to everything."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from data_plane.router.core.policies.policy import Ask, Pick, Randomness
from data_plane.router.core.policies.weighing import cached_tokens, chosen
from data_plane.router.core.pool import Pool

TENANTS_MAX: Final = 10_000
"""Tenants whose turn is remembered; the one that asked longest ago begins anew."""


class RoundRobin:
    """Each in turn, per tenant.

    Args:
        random: Where each tenant begins, so that routers do not move in step.
    """

    name = "round_robin"
    waits_for_room = False

    def __init__(self, random: Randomness) -> None:
        self._random = random
        self._next: OrderedDict[str, int] = OrderedDict()

    def pick(self, ask: Ask, pool: Pool) -> Pick | None:
        """See Policy."""
        pool = pool.without(ask.excluded)
        count = len(pool.eligible)
        if not count:
            return None
        turn = self._next.pop(ask.tenant_id, None)
        if turn is None:
            turn = self._random.randrange(count)
            if len(self._next) >= TENANTS_MAX:
                self._next.popitem(last=False)
        self._next[ask.tenant_id] = turn + 1
        best = turn % count
        # How many turns away each one is.
        scores = [float((place - best) % count) for place in range(count)]
        return chosen(self.name, ask, pool, best, scores, cached_tokens(ask, pool), sticky=False)
