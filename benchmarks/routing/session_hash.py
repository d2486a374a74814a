"""The oracle of stickiness: every session has one replica, wherever the load is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import simulation.routing
from data_plane.router.core.policies.policy import Ask, Pick
from data_plane.router.core.policies.weighing import cached_tokens, chosen, rendezvous
from data_plane.router.core.pool import Pool

NAME = "session_hash"


class SessionHash:
    """Rendezvous hashing of the session, and nothing else."""

    name = NAME
    waits_for_room = False

    def pick(self, ask: Ask, pool: Pool) -> Pick | None:
        """See Policy."""
        pool = pool.without(ask.excluded)
        if not pool.eligible:
            return None
        best = rendezvous(pool.eligible, pool.order, ask.session_id or ask.request_id)
        return chosen(NAME, ask, pool, best, [0.0] * len(pool.eligible), cached_tokens(ask, pool), sticky=True)


@contextmanager
def in_force() -> Iterator[None]:
    """Routers of simulations that are made meanwhile follow the oracle; it is no policy that a model could ask for."""
    with patch.object(simulation.routing, "make_policy", lambda _name, _random: SessionHash()):
        yield
