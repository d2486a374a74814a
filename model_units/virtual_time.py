"""Virtual time: which of several waiting tenants is next, so that each is served in proportion to its weight. Pure.

Each tenant has a counter: how long its quota would have needed to pay for what it was served, in nanoseconds. Whoever
waits with the least counter is next, and pays at once: a request of 1,000 mMU at a weight of 60,000 mMU per minute adds
one second. Decode work is an estimate then and is put right when the request ends. This is start-time fair queueing
(Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996) over the token counters of Sheng et al., Fairness in Serving
Large Language Models (OSDI 2024), with model units in the place of weighted tokens.

Virtual now is the largest counter anybody was served at. Who begins to wait is lifted to it: a pause earns nothing, and
who comes new stands level with those that wait. Between two tenants that both wait all the time,

    | served_a / weight_a - served_b / weight_b | <= largest_a / weight_a + largest_b / weight_b + misjudged

with the largest request of each, and what the estimates of their requests in service are wrong by. So a tenant that
asks for less than its share waits for one request of each other tenant at most, whatever these send.

Example: a and b weigh the same and both have ten requests of 1,000 waiting: they take turns. c comes later and stands
level with them; it does not get what it could have had before.

Kept are tenants that wait, are in service, or are ahead of virtual now; everybody is forgotten when nobody waits or is
in service.
"""

from __future__ import annotations

import heapq
from typing import Final

NS_PER_MINUTE: Final = 60_000_000_000

AHEAD_MAX: Final = 4_096
"""Most idle tenants remembered because they are ahead of virtual now; the nearest is forgotten first. A few times the
tenants that one replica serves; what is lost is one request's advance of one tenant."""

# Entries of a heap that were replaced are dropped when met, or all at once when they outnumber the others by this.
_STALE_MIN: Final = 16


class _Account:
    __slots__ = ("counter_ns", "in_service", "order")

    def __init__(self, counter_ns: int) -> None:
        self.counter_ns = counter_ns
        self.order: int | None = None  # of its first waiting request; None while nothing waits
        self.in_service = 0


class VirtualTime:
    """The counters of the tenants that share one resource.

    Args:
        ahead_max: Most idle tenants remembered, 0 or more.

    Attributes:
        now_ns: Virtual now.
    """

    def __init__(self, *, ahead_max: int = AHEAD_MAX) -> None:
        self.now_ns = 0
        self._ahead_max = ahead_max
        self._accounts: dict[str, _Account] = {}
        self._waiting: list[tuple[int, int, str]] = []  # heap of (counter, order, tenant)
        self._ahead: list[tuple[int, str]] = []  # heap of (counter, idle tenant)
        self._waiting_tenants = 0
        self._in_service = 0

    def __len__(self) -> int:
        """Tenants remembered."""
        return len(self._accounts)

    def counter_ns(self, tenant: str) -> int:
        """A tenant's counter; that of one that is not remembered is virtual now."""
        account = self._accounts.get(tenant)
        return self.now_ns if account is None else account.counter_ns

    def wait(self, tenant: str, order: int) -> None:
        """A tenant has a request waiting, or another one is its first now.

        Args:
            tenant: Who.
            order: Place of its first request in order of arrival: decides between equal counters.
        """
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account(self.now_ns)
        if account.order is None:
            account.counter_ns = max(account.counter_ns, self.now_ns)
            self._waiting_tenants += 1
        account.order = order
        self._push(tenant, account)

    def rest(self, tenant: str) -> None:
        """A tenant has nothing waiting any more, without having been served."""
        account = self._accounts[tenant]
        if account.order is not None:
            account.order = None
            self._waiting_tenants -= 1
            self._idle(tenant, account)

    def next(self) -> str | None:
        """Who is to be served now: the least counter of those that wait; None when nobody waits."""
        heap = self._waiting
        while heap:
            counter_ns, order, tenant = heap[0]
            account = self._accounts.get(tenant)
            if account is not None and account.order == order and account.counter_ns == counter_ns:
                return tenant
            heapq.heappop(heap)
        return None

    def serve(self, tenant: str, milli_mu: int, weight: int, next_order: int | None) -> None:
        """A waiting tenant's first request goes into service.

        Args:
            tenant: Who; usually the one `next` names.
            milli_mu: What the request costs as far as anybody knows, mMU, 0 or more.
            weight: The tenant's weight, mMU per minute; less than 1 counts as 1.
            next_order: Place of its next waiting request; None when there is none.
        """
        account = self._accounts[tenant]
        self.now_ns = max(self.now_ns, account.counter_ns)
        account.counter_ns += _time_ns(milli_mu, weight)
        account.in_service += 1
        self._in_service += 1
        account.order = next_order
        if next_order is None:
            self._waiting_tenants -= 1
        else:
            self._push(tenant, account)
        self._forget()

    def end(self, tenant: str, milli_mu: int, weight: int) -> None:
        """A request in service has ended: what was charged for it is put right.

        Args:
            tenant: Whose.
            milli_mu: What it cost beyond what it was charged, mMU; negative when it cost less.
            weight: The weight it was charged at.
        """
        account = self._accounts[tenant]
        account.counter_ns += _time_ns(milli_mu, weight)
        account.in_service -= 1
        self._in_service -= 1
        if account.order is not None:
            self._push(tenant, account)
        else:
            self._idle(tenant, account)

    def _push(self, tenant: str, account: _Account) -> None:
        assert account.order is not None
        heap = self._waiting
        heapq.heappush(heap, (account.counter_ns, account.order, tenant))
        if len(heap) > 2 * self._waiting_tenants + _STALE_MIN:
            self._waiting = [(a.counter_ns, a.order, name) for name, a in self._accounts.items() if a.order is not None]
            heapq.heapify(self._waiting)

    def _idle(self, tenant: str, account: _Account) -> None:
        """Forgets a tenant that has nothing here and no advance."""
        if account.in_service:
            return
        if not self._waiting_tenants and not self._in_service:
            self.now_ns = max(self.now_ns, *(each.counter_ns for each in self._accounts.values()))
            self._accounts.clear()
            self._waiting.clear()
            self._ahead.clear()
        elif account.counter_ns <= self.now_ns:
            del self._accounts[tenant]
        else:
            heapq.heappush(self._ahead, (account.counter_ns, tenant))
            self._forget()

    def _forget(self) -> None:
        """Forgets idle tenants that virtual now has reached, and the nearest where there are too many."""
        heap = self._ahead
        while heap and (heap[0][0] <= self.now_ns or len(heap) > self._ahead_max):
            counter_ns, tenant = heapq.heappop(heap)
            account = self._accounts.get(tenant)
            if account is None or account.order is not None or account.in_service or account.counter_ns != counter_ns:
                continue  # it came back
            self.now_ns = max(self.now_ns, counter_ns)
            del self._accounts[tenant]


def _time_ns(milli_mu: int, weight: int) -> int:
    return milli_mu * NS_PER_MINUTE // max(1, weight)
