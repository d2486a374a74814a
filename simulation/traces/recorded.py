"""Recorded requests as a workload: read by Fairlead's own replay reader, made denser by letting time run faster."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from fairlead.errors import InvalidArgumentError
from fairlead.replay.traces import Trace, read_trace
from simulation.traces.workload import Selection, SimRequest, Workload, finished


def recorded_workload(path: Path, selection: Selection) -> Workload:
    """Reads a part of a trace.

    Another rate than the recorded one lets the recorded time run faster or slower: every request stays, bursts become
    steeper or flatter with it, and `duration_s` of the workload take more or less of the trace.

    Args:
        path: CSV or JSON Lines, see fairlead/replay/traces.py.
        selection: Part and rate; nothing is drawn, so the seed does not matter.

    Raises:
        InvalidArgumentError: The file is wrong or the part is empty.
    """
    trace = read_trace(path)
    length_s = _length_s(trace)
    selection.end_s(length_s, trace.name)
    end_s, factor = _part(trace, length_s, selection)
    requests = [
        SimRequest(
            (request.arrival_s - selection.start_s) / factor,
            request.client,
            request.input_tokens,
            request.output_tokens,
            request.prefix_blocks,
        )
        for request in trace.requests
        if selection.start_s <= request.arrival_s < end_s
    ]
    notes = list(trace.notes)
    if factor != 1.0:
        notes.append(f"recorded time runs {factor:g} times as fast, which scales the rate")
    return finished(trace.name, requests, notes, (end_s - selection.start_s) / factor)


def _part(trace: Trace, length_s: float, selection: Selection) -> tuple[float, float]:
    """Where the part ends, in recorded time, and how fast that time runs."""
    start_s, duration_s = selection.start_s, selection.duration_s
    if selection.requests_per_s is None:
        factor = selection.rate_scale
        return length_s if duration_s is None else min(length_s, start_s + duration_s * factor), factor
    rate_per_s = selection.requests_per_s * selection.rate_scale
    times_s = [request.arrival_s for request in trace.requests if request.arrival_s >= start_s]
    count = len(times_s) if duration_s is None else max(1, round(rate_per_s * duration_s))
    end_s = times_s[count] if count < len(times_s) else length_s  # the first that is not wanted any more
    # Requests at the very moment of the end would leave nothing to run through.
    end_s = next((time_s for time_s in times_s if time_s >= end_s and time_s > start_s), length_s)
    taken = sum(time_s < end_s for time_s in times_s)
    return end_s, (end_s - start_s) * rate_per_s / max(taken, 1)


def _length_s(trace: Trace) -> float:
    """Length of a trace: one usual distance beyond its last arrival, so that this one lies inside too."""
    last_s = trace.requests[-1].arrival_s
    if last_s == 0:
        if len(trace.requests) > 1:
            raise InvalidArgumentError(f"{trace.name}: all requests came at once: their rate is unknown", field="trace")
        return 1.0
    distinct = sum(late.arrival_s > early.arrival_s for early, late in pairwise(trace.requests))
    return last_s + last_s / distinct
