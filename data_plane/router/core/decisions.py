"""The newest decisions, kept so that people can ask why.

A ring of the last requests, found by request id. One id may occur several times: tenants name their requests as they
like, and a client may send one again. Requests of callers nobody knows go into a ring of their own, a tenth as large,
so that a flood without keys cannot wash away what tenants may ask for.

Remembering keeps a reference and nothing more; whoever asks pays for making sense of it.
"""

from __future__ import annotations

from array import array
from typing import Final, Generic, Protocol, TypeVar

STRANGERS_SHARE: Final = 10
"""The ring of unknown callers is this many times smaller than that of tenants."""

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
        self._tenants: _Ring[R] = _Ring(kept_max)
        self._strangers: _Ring[R] = _Ring(-(-kept_max // STRANGERS_SHARE))

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
        if self.enabled:
            (self._tenants if record.tenant_id else self._strangers).add(record)

    def find(self, request_id: str, tenant_id: str | None) -> list[R]:
        """Looks an id up.

        Args:
            request_id: The id.
            tenant_id: Only this tenant's requests; None for everybody's, unknown callers' included.

        Returns:
            What is kept of it, newest first within a ring; at most FOUND_MAX.
        """
        found = self._tenants.find(request_id, tenant_id)
        if tenant_id is None:
            found += self._strangers.find(request_id, None)
        return found[:FOUND_MAX]


class _Ring(Generic[R]):
    """The last `kept_max` records; those of one id are chained from the newest to the oldest by their numbers."""

    __slots__ = ("_added", "_newest", "_older", "_records", "kept_max")

    def __init__(self, kept_max: int) -> None:
        self.kept_max = kept_max
        self._records: list[R] = []
        self._older = array("q")
        self._newest: dict[str, int] = {}
        self._added = 0

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: R) -> None:
        number, newest = self._added, self._newest
        self._added = number + 1
        older = newest.get(record.request_id, -1)
        newest[record.request_id] = number
        if number < self.kept_max:
            self._records.append(record)
            self._older.append(older)
            return
        place = number % self.kept_max
        gone = self._records[place].request_id
        if newest.get(gone) == number - self.kept_max:
            del newest[gone]
        self._records[place] = record
        self._older[place] = older

    def find(self, request_id: str, tenant_id: str | None) -> list[R]:
        found: list[R] = []
        number = self._newest.get(request_id, -1)
        oldest = max(0, self._added - self.kept_max)
        while number >= oldest and len(found) < FOUND_MAX:
            record = self._records[number % self.kept_max]
            if tenant_id is None or record.tenant_id == tenant_id:
                found.append(record)
            number = self._older[number % self.kept_max]
        return found
