"""The least work left, prefill and decode alike, over capacity.

A fair signal for how long a replica is busy and a poor one for the time to first token: decode inflates it. It is here
to be compared with.
"""

from __future__ import annotations

from data_plane.router.core.policies.policy import Ask, Pick
from data_plane.router.core.policies.weighing import cached_tokens, chosen, rendezvous
from data_plane.router.core.pool import Pool


class LeastCost:
    """The replica that would have the least work left, this request's included, over its capacity."""

    name = "least_cost"
    waits_for_room = False

    def pick(self, ask: Ask, pool: Pool) -> Pick | None:
        """See Policy."""
        pool = pool.without(ask.excluded)
        members = pool.eligible
        if not members:
            return None
        held = cached_tokens(ask, pool)
        scores = []
        for place, each in enumerate(members):
            left = each.pending_prefill_milli_mu + each.decode_milli_mu + each.queued_decode_milli_mu
            own = ask.uncached_milli_mu(held.get(place, 0)) + ask.decode_milli_mu
            scores.append((left + own) * each.minutes_per_milli_mu)
        lowest = min(scores)
        tied = [place for place, score in enumerate(scores) if score == lowest]
        best = rendezvous(members, tied, ask.request_id)
        return chosen(self.name, ask, pool, best, scores, held, sticky=False)
