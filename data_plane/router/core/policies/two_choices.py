"""The power of two choices on this router's active requests: the usual rule against stale knowledge."""

from __future__ import annotations

from data_plane.router.core.policies.policy import Ask, Pick, Randomness
from data_plane.router.core.policies.weighing import cached_tokens, chosen
from data_plane.router.core.pool import Pool


class TwoChoices:
    """Of two at random the one with fewer of this router's requests in flight.

    Args:
        random: Draws the two.
    """

    name = "two_choices"
    waits_for_room = False

    def __init__(self, random: Randomness) -> None:
        self._random = random

    def pick(self, ask: Ask, pool: Pool) -> Pick | None:
        """See Policy."""
        pool = pool.without(ask.excluded)
        members = pool.eligible
        if not members:
            return None
        first = self._random.randrange(len(members))
        best = first
        if len(members) > 1:
            second = self._random.randrange(len(members) - 1)
            second += second >= first
            best = min(first, second, key=lambda place: (members[place].in_flight, place != first))
        scores = [float(each.in_flight) for each in members]
        return chosen(self.name, ask, pool, best, scores, cached_tokens(ask, pool), sticky=False)
