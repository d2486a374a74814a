"""The platform's rule: the least prefill that waits and decode that runs, over capacity, cached prefixes counted off.

The signal for a short time to first token is *pending prefill*, not requests and not total work. So a candidate's score
is what the request would wait for and bring, over what the replica can do:

    (pending prefill + 0.3 x (decode that runs + decode that waits) + own x (1 + 0.2 x requests there)) / capacity

lowest wins; `own` is this prompt beyond the replica's cache. Long prompts go where few requests are, because a prefill
holds up whoever decodes or waits there. Simulated on a mix of recorded traces, with agents that serve short prompts
first, p95 time to first token is .36x that of power-of-two-choices on active requests, and p95 time per output token
.76x (docs/measurements.md); on one seed of an earlier state the last factor was worth a fifth of the first and a
seventh of the second.

Dispatches that no report has seen yet count `UNSEEN_WEIGHT` times more, in place of those of other routers, of which
nobody has told either.

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
"""Scores this close are alike, as a share of what the prompt itself would take. An assumption: two routers' views of
one replica differ by more than that."""

_NOTHING_HELD: Final[dict[int, int]] = {}


class Cost:
    """The least cost until the first token."""

    name = "cost"
    waits_for_room = False

    def pick(self, ask: Ask, pool: Pool) -> Pick | None:
        """See Policy."""
        # Taken apart at once: a field of a named tuple costs as much as all of them together.
        prefill, _, _, blocks, _, session_id, request_id, _, excluded, most, _ = ask
        if excluded:
            pool = pool.without(excluded)
        members = pool.eligible
        if not members:
            return None
        own, cached = prefill, 0
        groups: Sequence[tuple[int, int]] = ()
        if blocks and pool.prefixes is not None:
            groups = pool.prefixes.match(blocks, pool.cache_mask)
            if groups and len(pool.places) == len(members):
                groups, common = _without_common(groups, pool.cache_mask)
                if common:
                    cached = ask.cached_tokens(common)
                    own = ask.uncached_milli_mu(cached)
        scores = [each.load_minutes + own * each.own_minutes_per_milli_mu for each in members]
        held = _advantages(ask, pool, groups, scores) if groups else _NOTHING_HELD
        ranking = sorted(pool.order, key=scores.__getitem__)
        best = ranking[0]
        count = len(ranking)
        if count > 1:
            near = scores[best] + NEAR_TIE * prefill * members[best].minutes_per_milli_mu
            if scores[ranking[1]] <= near:
                best = rendezvous(members, _alike(ranking, scores, near), session_id or request_id)
        chosen = members[best]
        told = remembered(members, scores, ranking, best, most, cached, held) if most else ()
        sticky = False
        if held and best in held:
            sticky, cached = True, held[best]
            own = ask.uncached_milli_mu(cached)
        expected_s = expected_first_token_s(chosen, own)
        return Pick(chosen.replica_id, self.name, pool.panic, sticky, own, expected_s, told, count, cached)


def _alike(ranking: list[int], scores: list[float], near: float) -> list[int]:
    """The places of those that score no more than `near`."""
    for rank, place in enumerate(ranking):
        if scores[place] > near:
            return ranking[:rank]
    return ranking


def _without_common(groups: Sequence[tuple[int, int]], mask: int) -> tuple[Sequence[tuple[int, int]], int]:
    """Those that hold more of the prompt than everybody does, and how many leading blocks everybody holds."""
    holders = 0
    for group, _ in groups:
        holders |= group
    return (groups[1:], groups[0][1]) if holders == mask else (groups, 0)


def _advantages(ask: Ask, pool: Pool, groups: Sequence[tuple[int, int]], scores: list[float]) -> dict[int, int]:
    """Lowers the scores of those that hold more of the prompt than everybody does, unless they are overloaded.

    Args:
        ask: The request.
        pool: Its candidates.
        groups: Who holds more of its blocks than everybody does, and how many.
        scores: By place, as if they held no more; changed.

    Returns:
        Prompt tokens in the caches of these replicas, by place.
    """
    members, places = pool.eligible, pool.places
    request = ask.prefill_milli_mu + DECODE_WEIGHT * ask.decode_milli_mu
    limit = -1.0
    held: dict[int, int] = {}
    for mask, blocks in groups:
        cached = ask.cached_tokens(blocks)
        uncached = ask.uncached_milli_mu(cached)
        while mask:
            bit = mask & -mask
            mask ^= bit
            place = places[bit]
            each = members[place]
            held[place] = cached
            load = each.load_minutes
            beyond = load - request * each.minutes_per_milli_mu
            if beyond > 0.0:
                if limit < 0.0:  # the mean is looked at only where it matters
                    limit = OVERLOAD * sum([other.load_minutes for other in members]) / len(members)
                if beyond > limit:
                    continue
            scores[place] = load + uncached * each.own_minutes_per_milli_mu
    return held
