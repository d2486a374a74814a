"""Results of mutations by request id, so that a retry gets the first result instead of doing it again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from common.clock import NS_PER_S, MonotonicNs
from fairlead.errors import InvalidArgumentError

T = TypeVar("T")

# Promised by the API.
KEPT_NS = 600 * NS_PER_S
# A limit on everything: at ten mutations per second for ten minutes nothing is forgotten early.
ENTRIES_MAX = 6_000


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    fingerprint: bytes
    result: T
    ends_ns: int


class Remembered(Generic[T]):
    """A bounded memory of one process, oldest out first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, str], _Entry[T]] = OrderedDict()

    def recall(self, method: str, request_id: str, fingerprint: bytes, now: MonotonicNs) -> T | None:
        """The first result of a request id, or None.

        Args:
            method: What was called.
            request_id: The caller's name for the mutation.
            fingerprint: Of the whole request.
            now: Current time.

        Raises:
            InvalidArgumentError: The id was used for a different request.
        """
        self._forget(now)
        entry = self._entries.get((method, request_id))
        if entry is None:
            return None
        if entry.fingerprint != fingerprint:
            raise InvalidArgumentError(
                "request_id was used for a different request; use a new one for every mutation", field="request_id"
            )
        return entry.result

    def remember(self, method: str, request_id: str, fingerprint: bytes, result: T, now: MonotonicNs) -> None:
        """Keeps a result for KEPT_NS."""
        self._entries[method, request_id] = _Entry(fingerprint, result, now + KEPT_NS)
        self._forget(now)

    def _forget(self, now: MonotonicNs) -> None:
        while self._entries:
            oldest = next(iter(self._entries.values()))
            if oldest.ends_ns > now and len(self._entries) <= ENTRIES_MAX:
                return
            self._entries.popitem(last=False)
