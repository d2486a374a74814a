"""The fewest requests of this router in flight."""

from __future__ import annotations

from data_plane.router.core.policies.policy import Ask, Pick, Randomness
from data_plane.router.core.policies.weighing import cached_tokens, chosen
from data_plane.router.core.pool import Pool


class LeastRequests:
    """The replica with the fewest of this router's requests in flight.

    Args:
        random: Breaks ties, so that routers do not move in step.
    """

    name = "least_requests"
    waits_for_room = False

    def __init__(self, random: Randomness) -> None:
        self._random = random

    def pick(self, ask: Ask, pool: Pool) -> Pick | None:
        """See Policy."""
        pool = pool.without(ask.excluded)
        scores = [float(each.in_flight) for each in pool.eligible]
        if not scores:
            return None
        fewest = min(scores)
        tied = [place for place, count in enumerate(scores) if count == fewest]
        best = tied[self._random.randrange(len(tied))]
        return chosen(self.name, ask, pool, best, scores, cached_tokens(ask, pool), sticky=False)
