"""What an operator wants to know, kept for a week: written with what caused it, listed newest first."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from typing import Final

from common import keys
from common.clock import Clock
from common.logs import get_logger
from common.store import Expect, Store
from control_plane.core import check
from control_plane.core.happenings import Happening
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import InvalidArgumentError

log = get_logger(__name__)

KEPT_S: Final = 7 * 24 * 3600
# However busy a week was, listing stays cheap: at a few hundred bytes each this is some megabytes of etcd.
KEPT_MAX: Final = 10_000

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000

# etcd refuses transactions of more than 128 operations (--max-txn-ops).
_DELETES_MAX: Final = 100


class Events:
    """The events in the store.

    Args:
        store: Where they are.
        clock: Dates them.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._count = itertools.count()

    def entry(self, happening: Happening) -> dict[str, bytes]:
        """Key and value of a new event, to be put by the commit that makes it true."""
        now_ns = self._clock.wall_ns()
        # Digits enough for the next 250 years, so that ids sort by time; then what this process wrote in order; the
        # tail tells two processes apart.
        event_id = f"{now_ns // 1_000_000:013d}-{next(self._count):06d}-{secrets.token_hex(4)}"
        event = pb.Event(
            event_id=event_id,
            kind=happening.kind,
            severity=happening.severity,
            model_id=happening.model_id,
            message=happening.message,
            facts=happening.facts,
        )
        event.time.FromNanoseconds(now_ns)
        return {keys.event(event_id): event.SerializeToString()}

    async def list(self, request: pb.ListEventsRequest) -> pb.ListEventsResponse:
        """See CalibrationService."""
        if request.model_id:
            check.model_id(request.model_id)
        if not 0 <= request.page_size <= PAGE_SIZE_MAX:
            raise InvalidArgumentError(f"page_size must be 0 to {PAGE_SIZE_MAX}", field="page_size")
        wanted = await self.all(request.model_id)
        return pb.ListEventsResponse(events=wanted[: request.page_size or PAGE_SIZE_DEFAULT])

    async def all(self, model_id: str = "") -> Sequence[pb.Event]:
        """Every event that is kept, of one model or of all, newest first."""
        listing = await self._store.list(keys.EVENTS)
        events = [pb.Event.FromString(entry.value) for entry in reversed(listing.entries)]
        return [event for event in events if model_id in ("", event.model_id)]

    async def sweep(self, fence: Expect) -> None:
        """Deletes what is older than KEPT_S and what is beyond KEPT_MAX.

        Args:
            fence: The leader's.
        """
        entries = (await self._store.list(keys.EVENTS)).entries
        oldest_kept = keys.event(f"{self._clock.wall_ns() // 1_000_000 - KEPT_S * 1_000:013d}")
        surplus = max(0, len(entries) - KEPT_MAX)
        gone = [entry.key for index, entry in enumerate(entries) if index < surplus or entry.key < oldest_kept]
        for start in range(0, len(gone), _DELETES_MAX):
            if await self._store.commit([fence], {}, gone[start : start + _DELETES_MAX]) is None:
                return
        if gone:
            log.info("events forgotten", count=len(gone))
