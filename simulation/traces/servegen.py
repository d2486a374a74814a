"""ServeGen's statistics per client turned into requests (Alibaba Cloud Model Studio, arXiv 2505.09999).

Two files belong together: `PREFIX_rates*` with how many requests each client sent in each window of 600 s and how the
times between them varied, and `PREFIX_lengths*` with the quantiles of its lengths in each window of 6 hours.

For each client and window: the window's count, scaled, arrives as a renewal process of the published family and
coefficient of variation; lengths are drawn from the client's quantile functions. A client without lengths (the source
left out the largest files) draws from those of the others, each as often as it sent something. Texts, images, audio
and video of one prompt add up to its input; the images are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fairlead.errors import InvalidArgumentError
from fairlead.replay.files import CsvRow, csv_rows
from simulation.traces.distributions import Family, arrivals, shape_of
from simulation.traces.servegen_lengths import LengthTable, read_lengths
from simulation.traces.workload import Batch, Selection, Workload, check_size, workload_of

RATE_COLUMNS: Final = ("window_start_s", "client", "requests", "cv_interarrival", "pattern", "p1", "p2")
WINDOW_S: Final = 600.0
"""Length of a window of the rates. Source: ServeGen."""
_REQUESTS_MAX: Final = 1e9  # per window and client: more is a wrong column


@dataclass(frozen=True, slots=True)
class _Window:
    """What one client sent in one window."""

    start_s: float
    client: str
    requests: float
    family: Family
    shape: float


def servegen_workload(rates: Path, lengths: Path, selection: Selection) -> Workload:
    """Draws requests from a pair of files.

    Args:
        rates: The `*_rates*` file.
        lengths: The `*_lengths*` file.
        selection: Part, rate and seed.

    Raises:
        InvalidArgumentError: A file is wrong, the part is empty or too large.
    """
    notes: list[str] = []
    windows = _read_rates(rates, notes)
    begin_s = windows[0].start_s
    end_s = begin_s + selection.end_s(windows[-1].start_s + WINDOW_S - begin_s, rates.name)
    start_s = begin_s + selection.start_s
    chosen = [window for window in windows if window.start_s < end_s and window.start_s + WINDOW_S > start_s]
    if not any(window.requests for window in chosen):
        raise InvalidArgumentError(f"nobody sent anything in this part of {rates.name}", field="start_s")
    own_per_s = sum(window.requests * _overlap_s(window, start_s, end_s) for window in chosen) / WINDOW_S
    own_per_s /= end_s - start_s
    factor = selection.factor(own_per_s)
    # whole windows are drawn, whatever part of them is wanted
    check_size(sum(window.requests for window in chosen) * factor, rates.name)
    table = read_lengths(lengths)
    table.weigh((window.start_s, window.client, window.requests) for window in windows)
    batches = [batch.between(start_s, end_s) for window in chosen for batch in _drawn(window, factor, table, selection)]
    return workload_of(rates.name, batches, [*notes, *table.notes()], end_s - start_s)


def _drawn(window: _Window, factor: float, table: LengthTable, selection: Selection) -> Iterator[Batch]:
    draws = selection.stream("servegen", window.client, int(window.start_s))
    count = int(window.requests * factor + draws.random())
    if count:
        times = window.start_s + arrivals(draws, count, WINDOW_S, window.family, window.shape)
        inputs, outputs, images = table.draw(draws, window.client, window.start_s, count)
        yield Batch(window.client, times, inputs, outputs, images)


def _overlap_s(window: _Window, start_s: float, end_s: float) -> float:
    return min(end_s, window.start_s + WINDOW_S) - max(start_s, window.start_s)


def _read_rates(path: Path, notes: list[str]) -> list[_Window]:
    windows = [_window(row) for row in csv_rows(path, RATE_COLUMNS)]
    seen = {(window.start_s, window.client) for window in windows}
    if len(seen) < len(windows):
        raise InvalidArgumentError(
            f"{path.name} has a client twice in a window: is it two files in one?", field="trace"
        )
    order = np.argsort([window.start_s for window in windows], kind="stable")
    if (np.diff(order) < 0).any():
        notes.append("windows were not in order: sorted")
        windows = [windows[index] for index in order]
    empty = sum(window.requests == 0 for window in windows)
    if empty == len(windows):
        raise InvalidArgumentError(f"{path.name} holds no requests", field="trace")
    return windows


def _window(row: CsvRow) -> _Window:
    pattern = row.text("pattern")
    if pattern not in set(Family):
        row.lines.fail(f"unknown pattern {pattern!r}; known: {', '.join(Family)}")
    family = Family(pattern)
    cv = row.number("cv_interarrival") if row.text("cv_interarrival") else 0.0
    published = row.number("p1") if row.text("p1") else 0.0
    if cv == 0 and published == 0:
        row.lines.fail("neither cv_interarrival nor p1 (the shape) says how arrivals vary")
    return _Window(
        start_s=row.number("window_start_s"),
        client=row.text("client"),
        requests=row.number("requests", high=_REQUESTS_MAX),
        family=family,
        shape=shape_of(family, cv) if cv else published,
    )
