"""The newest decisions, kept so that people can ask why.

The last requests of every tenant, found by request id. There is one bound for all of them; once it is reached, the
tenant with most makes room, so that each of n tenants keeps its newest 1/n of it however loud the others are. One id
may occur several times: tenants name their requests as they like, and a client may send one again. Requests of callers
nobody knows have a bound of their own, a tenth as large, so that a flood without keys washes away nothing of tenants.

Remembering keeps a reference and nothing more; whoever asks pays for making sense of it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, Protocol, TypeVar

STRANGERS_SHARE: Final = 10
"""So many times fewer requests of unknown callers are kept than of tenants."""

SAME_ID_MAX: Final = 32
"""Newest requests that are kept of one tenant under one id: a client that retries for ever under one id pushes out
nothing else, and looking it up stays cheap."""

FOUND_MAX: Final = 100
"""Most decisions found under one id: at about 2 kB each an answer stays far below a gRPC message's limit."""


class Decided(Protocol):
    """What can be remembered.

    Attributes:
        request_id: The request.
        tenant_id: Whose; empty where nobody knows. Must not change once it was remembered.
    """

    request_id: str
    tenant_id: str


R = TypeVar("R", bound=Decided)


class DecisionLog(Generic[R]):
    """Remembers requests, newest over oldest.

    Args:
        kept_max: Most requests of known tenants that are kept, 0 or more; 0 keeps none at all.
    """

    def __init__(self, kept_max: int) -> None:
        self._tenants: _Shared[R] = _Shared(kept_max)
        self._strangers: _Shared[R] = _Shared(-(-kept_max // STRANGERS_SHARE))

    def __len__(self) -> int:
        return len(self._tenants) + len(self._strangers)

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self._tenants.kept_max > 0

    @property
    def kept_max(self) -> int:
        """Most requests of known tenants that are kept."""
        return self._tenants.kept_max

    def remember(self, record: R) -> None:
        """Keeps a request; what is written into it later shows in what is found."""
        if self._tenants.kept_max > 0:
            (self._tenants if record.tenant_id else self._strangers).add(record)

    def find(self, request_id: str, tenant_id: str | None) -> list[R]:
        """Looks an id up: in no time for one tenant, with one look at each of them for everybody.

        Args:
            request_id: The id.
            tenant_id: Only this tenant's requests; None for everybody's, unknown callers' included.

        Returns:
            What is kept of it, newest first, tenants' before unknown callers'; at most FOUND_MAX.
        """
        if tenant_id is not None:
            return self._tenants.find(request_id, tenant_id)
        return (self._tenants.find_all(request_id) + self._strangers.find_all(request_id))[:FOUND_MAX]


class _Tenant(Generic[R]):
    """One tenant's records by their numbers, oldest first, and the numbers under each id, oldest first."""

    __slots__ = ("numbers", "records")

    def __init__(self) -> None:
        self.records: OrderedDict[int, R] = OrderedDict()
        self.numbers: dict[str, tuple[int, ...]] = {}

    def drop_oldest(self) -> None:
        _, record = self.records.popitem(last=False)
        # The oldest of all is the oldest under its id.
        self._drop_first(record.request_id)

    def drop_oldest_of(self, request_id: str) -> None:
        del self.records[self.numbers[request_id][0]]
        self._drop_first(request_id)

    def find(self, request_id: str) -> list[tuple[int, R]]:
        return [(number, self.records[number]) for number in reversed(self.numbers.get(request_id, ()))]

    def _drop_first(self, request_id: str) -> None:
        left = self.numbers[request_id][1:]
        if left:
            self.numbers[request_id] = left
        else:
            del self.numbers[request_id]


class _Shared(Generic[R]):
    """At most `kept_max` records of all tenants together; whoever has most makes room."""

    __slots__ = ("_added", "_by_count", "_kept", "_most", "_tenants", "kept_max")

    def __init__(self, kept_max: int) -> None:
        self.kept_max = kept_max
        self._tenants: dict[str, _Tenant[R]] = {}
        # The tenants with so many records, in the order in which they came to have them.
        self._by_count: dict[int, OrderedDict[str, None]] = {}
        self._most = 0
        self._kept = 0
        self._added = 0

    def __len__(self) -> int:
        return self._kept

    def add(self, record: R) -> None:
        tenant_id, request_id = record.tenant_id, record.request_id
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = self._tenants[tenant_id] = _Tenant()
        number = self._added = self._added + 1
        before = len(tenant.records)
        tenant.records[number] = record
        same = tenant.numbers.get(request_id)
        tenant.numbers[request_id] = (number,) if same is None else (*same, number)
        if same is not None and len(same) >= SAME_ID_MAX:
            tenant.drop_oldest_of(request_id)
            return
        if self._kept == self.kept_max and before == self._most:
            # Nobody has more: this tenant makes room for itself.
            tenant.drop_oldest()
            return
        self._moved(tenant_id, before, before + 1)
        if self._kept < self.kept_max:
            self._kept += 1
            return
        # Of several the one that came to have so many first: never the one that has just come.
        largest_id = next(iter(self._by_count[self._most]))
        self._tenants[largest_id].drop_oldest()
        self._moved(largest_id, self._most, self._most - 1)

    def find(self, request_id: str, tenant_id: str) -> list[R]:
        tenant = self._tenants.get(tenant_id)
        return [] if tenant is None else [record for _, record in tenant.find(request_id)]

    def find_all(self, request_id: str) -> list[R]:
        holders = [tenant for tenant in self._tenants.values() if request_id in tenant.numbers]
        found = [each for tenant in holders for each in tenant.find(request_id)]
        found.sort(key=lambda each: each[0], reverse=True)
        return [record for _, record in found[:FOUND_MAX]]

    def _moved(self, tenant_id: str, before: int, after: int) -> None:
        by_count = self._by_count
        if before:
            level = by_count[before]
            del level[tenant_id]
            if not level:
                del by_count[before]
        if after:
            into = by_count.get(after)
            if into is None:
                into = by_count[after] = OrderedDict()
            into[tenant_id] = None
        else:
            del self._tenants[tenant_id]
        # A count moves by one, so the largest does too.
        if after > self._most or (before == self._most and before not in by_count):
            self._most = after
