"""Who of an event loop has something to write: everybody is flushed once, however often something was added.

Tokens of a thousand clients come in one read from one replica. Each client's endpoint is touched as often as something
is for it, and written to once, at the end of that read; what is said outside a read goes out at the loop's next step.
"""

from __future__ import annotations

import asyncio
from typing import Protocol
from weakref import WeakKeyDictionary


class Writer(Protocol):
    """What may have something to write.

    Attributes:
        touched: Whether it will be flushed; its outbox keeps that.
    """

    touched: bool

    def flush(self) -> None:
        """Writes what there is."""
        ...


class Outbox:
    """See the module. One for each event loop: `Outbox.here()`.

    Attributes:
        reading: Something that came is being dealt with: whoever set this flushes at its end.
    """

    __slots__ = ("__weakref__", "_scheduled", "_touched", "reading")

    def __init__(self) -> None:
        self.reading = False
        self._scheduled = False
        self._touched: list[Writer] = []

    @staticmethod
    def here() -> Outbox:
        """The one of the running event loop."""
        return _OUTBOXES.setdefault(asyncio.get_running_loop(), Outbox())

    def touch(self, writer: Writer) -> None:
        """It has something to write."""
        if writer.touched:
            return
        writer.touched = True
        self._touched.append(writer)
        if not self.reading and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_later)

    def flush(self) -> None:
        """Flushes all that were touched. What they touch thereby goes out at the loop's next step."""
        self.reading = False
        if self._touched:
            touched, self._touched = self._touched, []
            for writer in touched:
                writer.touched = False
                writer.flush()

    def _flush_later(self) -> None:
        self._scheduled = False
        self.flush()


_OUTBOXES: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()
