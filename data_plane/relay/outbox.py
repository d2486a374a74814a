"""Who of an event loop has something to write: everybody is flushed once, however often something was added.

Tokens of a thousand clients come in one read from one replica. Each client's endpoint is touched as often as something
is for it, and written to once, at the end of that read; what is said outside a read goes out at the loop's next step.

A read from a replica brings one token of one client more often than many, and a write for each costs more than all the
rest. So where many frames come, from all replicas together, they are read once a millisecond, all at the same time, and
each client is written to once for all of them. Where few come that would only cost time.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from common.logs import get_logger

log = get_logger(__name__)

BUSY_FRAMES_PER_S: Final = 10_000
"""From so many data frames a second on they are read once a millisecond. Source: measured; a frame that comes alone
costs two system calls."""

_WINDOW_S: Final = 0.004
_PAUSE_S: Final = 0.001


class Writer(Protocol):
    """What may have something to write.

    Attributes:
        touched: Whether it will be flushed; its outbox keeps that.
    """

    touched: bool

    def flush(self) -> None:
        """Writes what there is."""
        ...


class Reader(Protocol):
    """What reads from a replica."""

    def pause(self) -> bool:
        """Reads no more for now; False where it cannot."""
        ...

    def read_on(self) -> None:
        """Reads again, where it still can."""
        ...


class Outbox:
    """See the module. One for each event loop: `Outbox.here()`.

    Attributes:
        reading: Something that came is being dealt with: whoever set this flushes at its end.
        busy: So much comes that it is read once a millisecond.
    """

    __slots__ = ("__weakref__", "_frames", "_resting", "_scheduled", "_touched", "_window_s", "busy", "reading")

    def __init__(self) -> None:
        self.reading = self.busy = False
        self._scheduled = False
        self._touched: list[Writer] = []
        self._window_s = 0.0
        self._frames = 0
        self._resting: list[Reader] = []

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
            self._schedule()

    def flush(self) -> None:
        """Flushes all that were touched. What they touch thereby goes out at the loop's next step."""
        self.reading = False
        if self._touched:
            touched, self._touched = self._touched, []
            for writer in touched:
                writer.touched = False
                try:
                    writer.flush()
                except Exception as error:  # one client's trouble holds up no other
                    log.error("cannot write", exc_info=error)

    def came(self, reader: Reader, frames: int, now_s: float) -> None:
        """The end of a read from a replica: flushes all that were touched, now or after the reads beside it.

        Args:
            reader: Who has read.
            frames: So many frames of data.
            now_s: The loop's time.
        """
        self._frames += frames
        elapsed_s = now_s - self._window_s
        if elapsed_s >= _WINDOW_S:
            self.busy = self._frames > BUSY_FRAMES_PER_S * elapsed_s
            self._frames, self._window_s = 0, now_s
        if not self.busy:
            self.flush()
            return
        self.reading = False
        if self._touched and not self._scheduled:
            self._schedule()
        if reader.pause():
            if not self._resting:
                asyncio.get_running_loop().call_later(_PAUSE_S, self._read_on)
            self._resting.append(reader)

    def _read_on(self) -> None:
        resting, self._resting = self._resting, []
        for reader in resting:
            reader.read_on()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._scheduled = False
        self.flush()


_OUTBOXES: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()
