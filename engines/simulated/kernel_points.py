"""Measured GPU times of a replica's steps: what the step-time constants are fitted to.

A file is CSV, plain or gzip-compressed, with the columns `config,component,batch_or_tokens,seq_or_context_len,ms`; see
data/README.md for what a row of each component means. The times are GPU time: the host's work is not in them.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead.errors import InvalidArgumentError
from fairlead.replay.files import CsvRow, csv_rows

SHIPPED_POINTS: Final = Path(__file__).parent / "data" / "engine_step_times.csv.gz"
"""The measurements behind the shipped constants."""

POINT_COLUMNS: Final = ("config", "component", "batch_or_tokens", "seq_or_context_len", "ms")
"""Columns of a file of measurements."""
_TOKENS_MAX: Final = 1e9  # more than any step or context holds: a wrong column


class Component(enum.StrEnum):
    """What a row measures."""

    LINEAR_LAYERS = "linear_layers"
    PREFILL_ATTENTION = "prefill_attention"
    DECODE_ATTENTION = "decode_attention"
    PREFILL_STEP = "prefill_step"
    DECODE_STEP = "decode_step"


@dataclass(frozen=True, slots=True)
class KernelPoint:
    """One measured time.

    Attributes:
        component: What was measured.
        batch: Sequences (of prompts or decoding), or tokens in the step for the linear layers; 1 or more.
        length: Tokens of each prompt or of each context, 1 or more; without meaning for the linear layers.
        ms: GPU time of one pass, milliseconds, above 0.
    """

    component: Component
    batch: int
    length: int
    ms: float

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed."""
        prefill = self.component in (Component.PREFILL_ATTENTION, Component.PREFILL_STEP)
        return self.batch * self.length if prefill else 0

    @property
    def prefill_squares(self) -> int:
        """Sum of the squared prompt lengths."""
        return self.prefill_tokens * self.length

    @property
    def sequences(self) -> int:
        """Sequences that decode."""
        return self.batch if self.component in (Component.DECODE_ATTENTION, Component.DECODE_STEP) else 0

    @property
    def context_tokens(self) -> int:
        """Sum of the contexts of the sequences that decode."""
        return self.sequences * self.length

    @property
    def linear_tokens(self) -> int:
        """Tokens that go through the linear layers in what was measured."""
        if self.component is Component.LINEAR_LAYERS:
            return self.batch
        step = self.component in (Component.PREFILL_STEP, Component.DECODE_STEP)
        return self.prefill_tokens + self.sequences if step else 0


def read_kernel_points(path: Path | str = SHIPPED_POINTS) -> dict[str, tuple[KernelPoint, ...]]:
    """Reads a file of measurements.

    Args:
        path: The file; what ships with Fairlead when left out.

    Returns:
        The points of each configuration, by its name, in the file's order.

    Raises:
        InvalidArgumentError: The file cannot be read, is damaged or cut off, lacks a column, is empty, or has a row
            with an unknown component or with a number out of range; the message names the line.
    """
    points: dict[str, list[KernelPoint]] = {}
    for row in csv_rows(path, POINT_COLUMNS, field="points"):
        config = row.text("config")
        if not config:
            row.lines.fail("config is empty")
        points.setdefault(config, []).append(_point(row))
    return {config: tuple(rows) for config, rows in points.items()}


def check_points(config: str, points: tuple[KernelPoint, ...]) -> None:
    """Refuses points that no fit can start from.

    Raises:
        InvalidArgumentError: A number is out of range, or steps of decode or of prefill are missing.
    """
    for point in points:
        if not (math.isfinite(point.ms) and point.ms > 0 and point.batch >= 1 and point.length >= 0):
            raise InvalidArgumentError(f"{config}: {point} is out of range", field="points")
    for component in (Component.DECODE_STEP, Component.PREFILL_STEP):
        if not any(point.component is component for point in points):
            raise InvalidArgumentError(f"{config} has no {component} rows: measure some and try again", field="points")


def _point(row: CsvRow) -> KernelPoint:
    name = row.text("component")
    if name not in set(Component):
        row.lines.fail(f"unknown component {name!r}; known: {', '.join(Component)}")
    component = Component(name)
    ms = row.number("ms")
    if ms == 0:
        row.lines.fail("ms must be above 0")
    return KernelPoint(
        component,
        batch=row.whole("batch_or_tokens", low=1, high=_TOKENS_MAX),
        length=row.whole("seq_or_context_len", low=component is not Component.LINEAR_LAYERS, high=_TOKENS_MAX),
        ms=ms,
    )
