"""How far each router's dispatches have come in: what a report to it already counts, and what it must add by itself."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

ROUTERS_MAX: Final = 4_096
"""Most routers remembered; the one not heard of for longest is forgotten first. Far more than share a fleet, so that
only those that are gone are forgotten; for one that is not, a report says 0 until its next request."""


LATE_MAX: Final = 64
"""A number so far below the highest is not late: its router's process began anew under the same name. Requests of one
connection arrive in the order in which they were sent but for a few; taken wrongly, the next one puts it right."""


class DispatchesSeen:
    """The highest number received from each router. Duplicates and numbers that come a little late change nothing."""

    def __init__(self) -> None:
        self._highest: OrderedDict[str, int] = OrderedDict()  # longest not heard of first

    def receive(self, router_id: str, number: int) -> None:
        """A request arrived, whatever becomes of it.

        Args:
            router_id: Who sent it; empty for one that does not count.
            number: Its count of what it sent here, from 1; less says nothing.
        """
        if not router_id or number < 1:
            return
        highest = self._highest.get(router_id, 0)
        self._highest[router_id] = max(number, highest) if number >= highest - LATE_MAX else number
        self._highest.move_to_end(router_id)
        if len(self._highest) > ROUTERS_MAX:
            self._highest.popitem(last=False)

    def seen(self, router_id: str) -> int:
        """The highest number received from a router; 0 before the first."""
        return self._highest.get(router_id, 0)
