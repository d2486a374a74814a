"""How far a phase is, on standard error: a line now and then, for people and for logs alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

EVERY_S: Final = 15.0
"""Between lines."""


def told(what: str) -> Callable[[int, int], None]:
    """Says how many of how many are done, not more often than every EVERY_S, and at the end."""
    began_s = said_s = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if done == of or now_s - said_s >= EVERY_S:
            said_s = now_s
            print(f"{what}: {done} of {of} after {now_s - began_s:.0f} s", file=sys.stderr, flush=True)

    return tell
