"""What all policies share: how a choice and the candidates it was made among are written down."""

from __future__ import annotations

import zlib
from typing import Final

from data_plane.router.core.candidate import Candidate
from data_plane.router.core.policies.policy import Ask, Pick, Rank, expected_first_token_s
from data_plane.router.core.pool import Pool

# Salts below 2^24 leave 29 bits of a product's fraction exact.
_SALT_MASK: Final = (1 << 24) - 1


def rendezvous(members: list[Candidate], places: list[int], name: str) -> int:
    """The place of the replica that a name belongs to, the same one in every router.

    Args:
        members: Candidates.
        places: Among which of them, by place; one or more.
        name: A session, or a request.
    """
    if len(places) == 1:
        return places[0]
    salt = float(zlib.crc32(name.encode("utf-8", "surrogatepass")) & _SALT_MASK)
    draws = [members[place].phase * salt % 1.0 for place in places]
    return places[draws.index(max(draws))]


def remembered(
    members: list[Candidate],
    scores: list[float],
    ranking: list[int],
    best: int,
    most: int,
    cached_tokens: int,
    held: dict[int, int],
) -> tuple[Rank, ...]:
    """The winner and the best of the others, as they are now.

    Args:
        members: Who was weighed.
        scores: By place in `members`; less is better.
        ranking: Places, the least score first.
        best: The winner's place.
        most: How many are wanted, 1 or more.
        cached_tokens: Prompt tokens that everybody holds.
        held: Prompt tokens that some hold, by place.
    """
    top = ranking[:most]
    if top[0] != best:
        if best in top:
            top.remove(best)
        else:
            top.pop()
        top.insert(0, best)
    if not held:
        return tuple([((each := members[place]).told, scores[place], cached_tokens, each.health) for place in top])
    return tuple(
        [((each := members[place]).told, scores[place], held.get(place, cached_tokens), each.health) for place in top]
    )


def cached_tokens(ask: Ask, pool: Pool) -> dict[int, int]:
    """Prompt tokens in the caches of the eligible candidates that hold any, by place in `pool.eligible`."""
    held: dict[int, int] = {}
    for mask, blocks in pool.prefixes.match(ask.prefix_blocks, pool.cache_mask) if pool.prefixes is not None else ():
        tokens = ask.cached_tokens(blocks)
        while mask:
            bit = mask & -mask
            mask ^= bit
            held[pool.places[bit]] = tokens
    return held


def chosen(
    policy: str, ask: Ask, pool: Pool, best: int, scores: list[float], held: dict[int, int], *, sticky: bool
) -> Pick:
    """A choice, written down.

    Args:
        policy: The rule's name.
        ask: The request.
        pool: The candidates without those that are excluded.
        best: The winner's place among the eligible.
        scores: What they were compared by; less is better.
        held: As from `cached_tokens`.
        sticky: As in Pick.
    """
    members = pool.eligible
    winner, cached = members[best], held.get(best, 0)
    uncached = ask.uncached_milli_mu(cached)
    ranking: tuple[Rank, ...] = ()
    if ask.weighed_max:
        places = sorted(pool.order, key=scores.__getitem__)
        ranking = remembered(members, scores, places, best, ask.weighed_max, 0, held)
    return Pick(
        winner.replica_id,
        policy,
        pool.panic,
        sticky,
        uncached,
        expected_first_token_s(winner, uncached),
        ranking,
        len(members),
        cached,
    )
