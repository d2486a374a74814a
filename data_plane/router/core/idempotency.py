"""One execution per request id: the window in which a repeated id is recognised.

A client that lost its connection sends the same request again under the same id. While the first is in flight the
second is refused (REQUEST_IN_FLIGHT); once it finished, its answer is replayed and nothing is charged again. A request
that failed is forgotten, so that trying again means executing again. The window is bounded by age, by count and by the
bytes of the answers it keeps: an answer that does not fit is forgotten, oldest first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

from fairlead.errors import ConflictError, InvalidArgumentError, Reason

T = TypeVar("T")

WINDOW_S: Final = 600.0
ENTRIES_MAX: Final = 50_000
ANSWER_BYTES_MAX: Final = 64 << 20

_NS_PER_S: Final = 1_000_000_000
_Key = tuple[str, str]


class _Entry(Generic[T]):
    __slots__ = ("answer", "answer_bytes", "fingerprint", "finished_ns")

    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint
        self.finished_ns: int | None = None
        self.answer: T | None = None
        self.answer_bytes = 0


class IdempotencyWindow(Generic[T]):
    """Requests by (tenant, request id), lately.

    Args:
        window_s: How long a finished answer is kept.
        entries_max: Most requests remembered, in flight or finished.
        answer_bytes_max: Most bytes of answers kept in all.
    """

    def __init__(
        self,
        *,
        window_s: float = WINDOW_S,
        entries_max: int = ENTRIES_MAX,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        self._window_ns = int(window_s * _NS_PER_S)
        self._entries_max = entries_max
        self._bytes_max = answer_bytes_max
        self._in_flight: dict[_Key, _Entry[T]] = {}
        self._finished: OrderedDict[_Key, _Entry[T]] = OrderedDict()  # oldest first
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._in_flight) + len(self._finished)

    @property
    def answer_bytes(self) -> int:
        """Bytes of the answers kept."""
        return self._bytes

    def begin(self, tenant_id: str, request_id: str, fingerprint: bytes, now_ns: int) -> T | None:
        """Opens a request, or finds the answer it already got.

        Args:
            tenant_id: Whose.
            request_id: As the client named it.
            fingerprint: Digest of the request's content: an id must not be reused for another request.
            now_ns: Monotonic now.

        Returns:
            The answer to replay, or None: execute, then call `finish` or `abandon`.

        Raises:
            ConflictError: The same request is in flight; reason REQUEST_IN_FLIGHT.
            InvalidArgumentError: The id belongs to another request.
        """
        self._expire(now_ns)
        key = (tenant_id, request_id)
        entry = self._in_flight.get(key) or self._finished.get(key)
        if entry is None:
            self._in_flight[key] = _Entry(fingerprint)
            self._shrink()
            return None
        if entry.fingerprint != fingerprint:
            raise InvalidArgumentError(
                "this request_id was used for a different request within the last ten minutes; draw a new one",
                field="request_id",
            )
        if entry.finished_ns is None:
            raise ConflictError(
                "a request with this request_id is in flight; wait for it or draw a new id",
                reason=Reason.REQUEST_IN_FLIGHT,
                retry_after_s=1.0,
            )
        return entry.answer

    def finish(self, tenant_id: str, request_id: str, answer: T, answer_bytes: int, now_ns: int) -> None:
        """Keeps the answer of a request that was begun.

        Args:
            tenant_id: Whose.
            request_id: Which.
            answer: What to replay.
            answer_bytes: Its size.
            now_ns: Monotonic now.
        """
        key = (tenant_id, request_id)
        entry = self._in_flight.pop(key, None)
        if entry is None or answer_bytes > self._bytes_max:
            return
        entry.finished_ns, entry.answer, entry.answer_bytes = now_ns, answer, answer_bytes
        self._finished[key] = entry
        self._bytes += answer_bytes
        self._shrink()

    def abandon(self, tenant_id: str, request_id: str) -> None:
        """Forgets a request that was begun and did not succeed."""
        self._in_flight.pop((tenant_id, request_id), None)

    def _expire(self, now_ns: int) -> None:
        while self._finished:
            key, entry = next(iter(self._finished.items()))
            if now_ns - (entry.finished_ns or 0) < self._window_ns:
                return
            self._drop(key)

    def _shrink(self) -> None:
        while self._finished and (len(self) > self._entries_max or self._bytes > self._bytes_max):
            self._drop(next(iter(self._finished)))

    def _drop(self, key: _Key) -> None:
        self._bytes -= self._finished.pop(key).answer_bytes
