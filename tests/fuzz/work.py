"""How much work code does, counted in lines of Python, which no machine does more or fewer of than another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

_PRODUCT = str(Path(__file__).resolve().parents[2] / "data_plane")

Step = tuple[str, int, int]
"""From one line of a file to another."""


class Work:
    """Counts the lines of the data plane that a block of code runs.

    Attributes:
        lines: So many so far.
    """

    def __init__(self) -> None:
        self.lines = 0
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, _event: str, _argument: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_PRODUCT) else None

    def _line(self, _frame: FrameType, event: str, _argument: object) -> Any:
        self.lines += event == "line"
        return self._line


def steps_of(call: Callable[[], object]) -> set[Step]:
    """From which line to which the data plane went in a call."""
    steps: set[Step] = set()

    def called(frame: FrameType, _event: str, _argument: object) -> Any:
        name, before = frame.f_code.co_filename, 0
        if not name.startswith(_PRODUCT):
            return None

        def line(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal before
            if event == "line":
                steps.add((name, before, frame.f_lineno))
                before = frame.f_lineno
            return line

        return line

    # The targets count work by tracing: what they set is put aside.
    set_trace = sys.settrace
    sys.settrace(called)
    sys.settrace = lambda _: None  # type: ignore[assignment]
    try:
        call()
    finally:
        sys.settrace = set_trace
        sys.settrace(None)
    return steps
