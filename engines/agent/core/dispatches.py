"""How far each router's dispatches have come in: what a report to it already counts, and what it must add by itself."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

ROUTERS_MAX: Final = 4_096
"""Most router processes remembered; the one not heard of for longest is forgotten first. Far more than share a fleet,
so that only processes that are gone are forgotten; for one that is not, a report says 0 until its next request."""


class DispatchesSeen:
    """The highest number received from each router process. Duplicates and numbers that come late change nothing."""

    def __init__(self) -> None:
        self._highest: OrderedDict[str, int] = OrderedDict()  # longest not heard of first

    def receive(self, router_id: str, number: int) -> None:
        """A request arrived, whatever becomes of it.

        Args:
            router_id: The process that sent it; empty for one that does not count.
            number: Its count of what it sent here, from 1; less says nothing.
        """
        if not router_id or number < 1:
            return
        self._highest[router_id] = max(number, self._highest.get(router_id, 0))
        self._highest.move_to_end(router_id)
        if len(self._highest) > ROUTERS_MAX:
            self._highest.popitem(last=False)

    def seen(self, router_id: str) -> int:
        """The highest number received from a router; 0 before the first."""
        return self._highest.get(router_id, 0)
