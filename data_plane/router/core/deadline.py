"""Whether a request can make its deadline: one that cannot is refused at once, before anything is spent on it."""

from __future__ import annotations

from typing import Final

from data_plane.router.core.policies.policy import Ask, expected_first_token_s
from data_plane.router.core.policies.weighing import cached_tokens
from data_plane.router.core.pool import Pool

DOUBT: Final = 1.5
"""A request is refused when its first token is expected this many times later than its deadline. Prices are a few
percent off and lengths a little more, but what waits at a replica may also leave, so half as much again must be
missing."""


def soonest_first_token_s(ask: Ask, pool: Pool) -> float | None:
    """When the first token is expected on the replica that would give it first.

    Args:
        ask: The request.
        pool: The candidates of its workload.

    Returns:
        Seconds from now; None when nothing is eligible.
    """
    pool = pool.without(ask.excluded)
    held = cached_tokens(ask, pool)
    return min(
        (
            expected_first_token_s(each, ask.uncached_milli_mu(held.get(place, 0)))
            for place, each in enumerate(pool.eligible)
        ),
        default=None,
    )


def is_hopeless(expected_s: float, left_s: float) -> bool:
    """Whether a request should be refused for its deadline.

    Args:
        expected_s: Until its first token on the best replica.
        left_s: Until its deadline; infinite without one.
    """
    return expected_s > DOUBT * max(0.0, left_s)
