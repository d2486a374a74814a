"""SGLang's cache-aware rule with its published thresholds.

While loads are even, a request goes to whoever holds the longest part of its prompt, if that is long enough, else to
the one whose cache has the most space; once they are uneven, to the shortest queue. Here the shortest queue also stands
for the most space: caches are sized alike and fill up.
"""

from __future__ import annotations

from typing import Final

from data_plane.router.core.policies.policy import Ask, Pick
from data_plane.router.core.policies.weighing import cached_tokens, chosen, rendezvous
from data_plane.router.core.pool import Pool

MATCH_SHARE: Final = 0.3
"""A prefix counts from this share of the prompt on. Source: SGLang's cache_threshold."""

UNEVEN_REQUESTS: Final = 64
"""Loads are uneven when the most and the fewest requests differ by more than this, and ... Source: SGLang's
balance_abs_threshold."""

UNEVEN_RATIO: Final = 1.5
"""... the most are more than this times the fewest. Source: SGLang's balance_rel_threshold."""


class PrefixMatch:
    """The longest cached prefix where it is long enough and the load is even enough, else the fewest requests."""

    name = "prefix_match"
    waits_for_room = False

    def pick(self, ask: Ask, pool: Pool) -> Pick | None:
        """See Policy."""
        pool = pool.without(ask.excluded)
        members = pool.eligible
        if not members:
            return None
        held = cached_tokens(ask, pool)
        queues = [float(each.in_flight) for each in members]
        most, fewest = max(queues), min(queues)
        even = most - fewest <= UNEVEN_REQUESTS or most <= UNEVEN_RATIO * fewest
        longest = max(held.values(), default=0)
        sticky = even and longest > MATCH_SHARE * ask.input_tokens
        tied = (
            [place for place, tokens in held.items() if tokens == longest]
            if sticky
            else [place for place, queue in enumerate(queues) if queue == fewest]
        )
        scores = [-float(held.get(place, 0)) for place in range(len(members))] if sticky else queues
        best = rendezvous(members, tied, ask.request_id)
        return chosen(self.name, ask, pool, best, scores, held, sticky=sticky)
