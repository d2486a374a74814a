"""A transport that takes everything at once, for ends of connections under a fuzzer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Transport(asyncio.Transport):
    """See the module.

    Attributes:
        written: Bytes that were written.
        closing: It was closed or aborted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def within_loop(run: Callable[[], None]) -> None:
    """Runs something that wants an event loop, and lets the loop go on once."""

    async def within() -> None:
        run()
        await asyncio.sleep(0)

    asyncio.run(within())
