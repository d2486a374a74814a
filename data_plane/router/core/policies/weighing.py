"""What all policies share: how a choice and the candidates it was made among are written down."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Final

from data_plane.router.core.candidate import Candidate
from data_plane.router.core.policies.policy import Ask, Pick, Weighed, expected_first_token_s
from data_plane.router.core.pool import Pool

# Salts below 2^24 leave 29 bits of a product's fraction exact.
_SALT_MASK: Final = (1 << 24) - 1


def rendezvous(members: Sequence[Candidate], places: Sequence[int], name: str) -> int:
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


def weighed(
    members: Sequence[Candidate],
    scores: Sequence[float],
    best: int,
    most: int,
    cached_tokens: int,
    held: Mapping[int, int],
) -> tuple[Weighed, ...]:
    """The winner and the best of the others, as they are now.

    Args:
        members: Who was weighed.
        scores: By place in `members`; less is better.
        best: The winner's place.
        most: How many are wanted, 1 or more.
        cached_tokens: Prompt tokens that everybody holds.
        held: Prompt tokens that some hold, by place.
    """
    others: Iterable[int] = range(len(scores))
    if len(scores) > most:
        bound = sorted(scores)[most - 1]
        others = list(compress(others, map(bound.__ge__, scores)))
        if len(others) > most:
            others.sort(key=scores.__getitem__)
    chosen = [best, *[place for place in others if place != best][: most - 1]]
    return tuple(
        [
            (
                (each := members[place]).replica_id,
                scores[place],
                each.pending_prefill_milli_mu,
                each.decode_milli_mu,
                each.capacity_milli_mu_per_minute,
                each.health,
                each.queued_decode_milli_mu,
                held.get(place, cached_tokens),
            )
            for place in chosen
        ]
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
    policy: str, ask: Ask, pool: Pool, best: int, scores: Sequence[float], held: Mapping[int, int], *, sticky: bool
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
    return Pick(
        winner.replica_id,
        policy,
        pool.panic,
        sticky,
        uncached,
        expected_first_token_s(winner, uncached),
        weighed(members, scores, best, ask.weighed_max, 0, held) if ask.weighed_max else (),
        len(members),
        cached,
    )
