"""Whether a request can make its deadline: one that cannot is refused at once, before anything is spent on it.

Only what is certainly before a request counts against it. Agents let a higher priority overtake, are fair between
tenants and serve a tenant's short prompts first, so of what waits at a replica only this stands surely in front:

    the request's own uncached prefill, and
    of the same tenant what this router sent there and has not seen begin: all of a higher priority, and of the same
    priority what is no larger.

What else waits there, of other tenants, of other routers, may well be overtaken. In doubt nobody is refused: a request
that is too late after all ends at its deadline.
"""

from __future__ import annotations

from typing import Final

from data_plane.router.core.candidate import SECONDS_PER_MINUTE
from data_plane.router.core.loads import Dispatch
from data_plane.router.core.policies.policy import Ask
from data_plane.router.core.policies.weighing import cached_tokens
from data_plane.router.core.pool import Pool

DOUBT: Final = 1.5
"""A request is refused when its first token comes at least this many times later than its deadline. Prices are a few
percent off and lengths a little more, but what waits at a replica may also leave, so half as much again must be
missing."""


class Sent:
    """What one router has sent and not seen begin, by replica and tenant."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], dict[Dispatch, int]] = {}

    def __len__(self) -> int:
        """Requests that have not begun."""
        return sum(map(len, self._lines.values()))

    def add(self, dispatch: Dispatch, tenant_id: str, rank: int) -> None:
        """A request is being sent.

        Args:
            dispatch: The request at its replica.
            tenant_id: Whose.
            rank: Its priority: lower goes first.
        """
        name = dispatch.line = dispatch.load.replica_id, tenant_id
        line = self._lines.get(name)
        if line is None:
            self._lines[name] = {dispatch: rank}
        else:
            line[dispatch] = rank

    def remove(self, dispatch: Dispatch) -> None:
        """Its first token came, or it left; saying it again does nothing."""
        name = dispatch.line
        if name is not None:
            dispatch.line = None
            line = self._lines[name]
            del line[dispatch]
            if not line:
                del self._lines[name]

    def before(self, replica_id: str, tenant_id: str, rank: int, prefill_milli_mu: int) -> int:
        """Prefill that certainly comes before a request at a replica, mMU.

        Args:
            replica_id: The replica.
            tenant_id: Whose the request is.
            rank: Its priority: lower goes first.
            prefill_milli_mu: Its own prompt beyond the replica's cache.
        """
        line = self._lines.get((replica_id, tenant_id))
        if line is None:
            return 0
        return sum(
            each.prefill_milli_mu
            for each, its in line.items()
            if its < rank or (its == rank and each.prefill_milli_mu <= prefill_milli_mu)
        )


def soonest_first_token_s(ask: Ask, pool: Pool, sent: Sent, rank: int) -> float | None:
    """How long the first token takes at least, on the replica that could give it first.

    Args:
        ask: The request.
        pool: The candidates of its workload.
        sent: What waits before it.
        rank: Its priority: lower goes first.

    Returns:
        Seconds from now; None when nothing is eligible.
    """
    pool = pool.without(ask.excluded)
    held, soonest_s = cached_tokens(ask, pool), None
    for place, each in enumerate(pool.eligible):
        own = ask.uncached_milli_mu(held.get(place, 0))
        certain = own + sent.before(each.replica_id, ask.tenant_id, rank, own)
        certain_s = certain * each.minutes_per_milli_mu * SECONDS_PER_MINUTE
        if soonest_s is None or certain_s < soonest_s:
            soonest_s = certain_s
    return soonest_s


def is_hopeless(expected_s: float, left_s: float) -> bool:
    """Whether a request should be refused for its deadline.

    Args:
        expected_s: Until its first token on the best replica.
        left_s: Until its deadline; infinite without one.
    """
    return expected_s > DOUBT * max(0.0, left_s)
