"""The platform's rule: the least prefill that waits and decode that runs, over capacity, cached prefixes counted off.

The signal for a short time to first token is *pending prefill*, not requests and not total work. So a candidate's score
is what the request would wait for and bring, over what the replica can do:

    (pending prefill + 0.3 x (decode that runs + decode that waits) + this prompt beyond its cache) / capacity

lowest wins. Measured on a mix of recorded traces at 69 % load: p95 time to first token .36x that of
power-of-two-choices on active requests, where total outstanding cost with known lengths reaches .70x.

Affinity emerges from the last term: a session returns to whoever holds its prefix, by as much as that saves. So that no
prefix makes a hot spot, a replica that is loaded beyond a quarter above the mean of its subset and one such request is
weighed as if it held no more than everybody does. Candidates that are nearly alike are told apart by rendezvous hashing
of the session, or of the request where there is none: every router finds the same one, and a session's first turns meet
even before any cache is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from data_plane.router.core.candidate import DECODE_WEIGHT
from data_plane.router.core.policies.policy import Ask, Pick, expected_first_token_s
from data_plane.router.core.policies.weighing import remembered, rendezvous
from data_plane.router.core.pool import Pool

OVERLOAD: Final = 1.25
"""A replica may be this much above the mean load of its subset and keep its advantage. Source: bounded-load hashing,
eps = .25."""

NEAR_TIE: Final = 0.05
"""Scores this close are alike, as a share of what the prompt itself would take: two routers' views of one replica
differ by more than that."""


class Cost:
    """The least cost until the first token."""

    name = "cost"
    waits_for_room = False

    def pick(self, ask: Ask, pool: Pool) -> Pick | None:
        """See Policy."""
        if ask.excluded:
            pool = pool.without(ask.excluded)
        members = pool.eligible
        if not members:
            return None
        own, common, cached = ask.prefill_milli_mu, 0, 0
        groups = pool.prefixes.match(ask.prefix_blocks, pool.cache_mask) if pool.prefixes is not None else ()
        if groups and len(pool.places) == len(members):
            common = _common(groups, pool.cache_mask)
            cached = ask.cached_tokens(common)
            own = ask.uncached_milli_mu(cached)
        scores = [each.load_minutes + own * each.own_minutes_per_milli_mu for each in members]
        held = _advantages(ask, pool, groups, common, scores) if groups else {}
        ranking = sorted(pool.order, key=scores.__getitem__)
        best = ranking[0]
        count = len(ranking)
        if count > 1:
            near = scores[best] + NEAR_TIE * ask.prefill_milli_mu * members[best].minutes_per_milli_mu
            if scores[ranking[1]] <= near:
                best = rendezvous(members, _alike(ranking, scores, near), ask.session_id or ask.request_id)
        chosen = members[best]
        most = ask.weighed_max
        told = remembered(members, scores, ranking, best, most, cached, held) if most else ()
        sticky = best in held
        if sticky:
            cached = held[best]
            own = ask.uncached_milli_mu(cached)
        expected_s = expected_first_token_s(chosen, own)
        return Pick(chosen.replica_id, self.name, pool.panic, sticky, own, expected_s, told, count, cached)


def _alike(ranking: Sequence[int], scores: Sequence[float], near: float) -> Sequence[int]:
    """The places of those that score no more than `near`."""
    for rank, place in enumerate(ranking):
        if scores[place] > near:
            return ranking[:rank]
    return ranking


def _common(groups: Sequence[tuple[int, int]], mask: int) -> int:
    """Leading blocks that everybody holds."""
    holders = 0
    for group, _ in groups:
        holders |= group
    return groups[0][1] if holders == mask else 0


def _advantages(
    ask: Ask, pool: Pool, groups: Sequence[tuple[int, int]], common: int, scores: list[float]
) -> dict[int, int]:
    """Lowers the scores of those that hold more of the prompt than everybody does, unless they are overloaded.

    Args:
        ask: The request.
        pool: Its candidates.
        groups: Who holds how many of its blocks.
        common: Blocks that everybody holds; the scores stand for them.
        scores: By place; changed.

    Returns:
        Prompt tokens in the caches of these replicas, by place.
    """
    members, places = pool.eligible, pool.places
    limit = OVERLOAD * sum([each.load_minutes for each in members]) / len(members)
    request = ask.prefill_milli_mu + DECODE_WEIGHT * ask.decode_milli_mu
    held: dict[int, int] = {}
    for mask, blocks in groups:
        if blocks <= common:
            continue
        cached = ask.cached_tokens(blocks)
        uncached = ask.uncached_milli_mu(cached)
        while mask:
            bit = mask & -mask
            mask ^= bit
            place = places[bit]
            each = members[place]
            held[place] = cached
            load = each.load_minutes
            if load <= limit + request * each.minutes_per_milli_mu:
                scores[place] = load + uncached * each.own_minutes_per_milli_mu
    return held
