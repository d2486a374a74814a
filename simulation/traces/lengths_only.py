"""Lengths without times: pairs drawn from a file, arriving by chance (Poisson) at a rate that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from fairlead.errors import InvalidArgumentError
from fairlead.replay.files import csv_rows
from fairlead.replay.traces import TOKENS_MAX
from simulation.traces.workload import Batch, Floats, Selection, Workload, check_size, whole_tokens, workload_of

LENGTH_PAIR_COLUMNS: Final = ("input_tokens", "output_tokens")


def lengths_workload(path: Path, selection: Selection) -> Workload:
    """Draws requests with the lengths of a file.

    Args:
        path: CSV with `input_tokens,output_tokens`, one request per row; input and output of a row stay together.
        selection: `requests_per_s` is needed; without `duration_s` as long as the file's rows last at that rate.

    Raises:
        InvalidArgumentError: The file is wrong, or no rate was given.
    """
    rows = [
        tuple(row.whole(column, high=TOKENS_MAX) for column in LENGTH_PAIR_COLUMNS)
        for row in csv_rows(path, LENGTH_PAIR_COLUMNS)
    ]
    lengths = np.array(rows, dtype=np.float64)
    rate_per_s = asked_rate_per_s(selection, path.name)
    duration_s = selection.duration_s or len(rows) / rate_per_s
    check_size(rate_per_s * duration_s, path.name)
    draws = selection.stream("lengths")
    times = poisson(draws, rate_per_s, duration_s)
    chosen = lengths[draws.integers(len(rows), size=len(times))]
    notes = ["the file has no times: arrivals are Poisson"]
    if zeros := int((lengths < 1).sum()):
        notes.append(f"{zeros} lengths of 0 tokens were taken as 1")
    if selection.start_s:
        notes.append("start_s does not matter without times")
    batch = Batch("", times, whole_tokens(chosen[:, 0]), whole_tokens(chosen[:, 1]))
    return workload_of(path.name, [batch], notes, duration_s)


def asked_rate_per_s(selection: Selection, name: str) -> float:
    """The rate for a source that has none of its own.

    Raises:
        InvalidArgumentError: None was given.
    """
    if selection.requests_per_s is None:
        raise InvalidArgumentError(f"{name} says nothing of a rate: give requests_per_s", field="requests_per_s")
    return selection.requests_per_s * selection.rate_scale


def poisson(draws: np.random.Generator, rate_per_s: float, span_s: float) -> Floats:
    """Arrivals of a Poisson process: seconds after the span's beginning, sorted."""
    times: Floats = np.sort(draws.random(draws.poisson(rate_per_s * span_s)) * span_s)
    return times
