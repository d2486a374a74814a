"""Recorded request traces for benchmarks: every file below a folder whose name and columns are known."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from fairlead.replay import Trace, TraceRequest, read_trace

# The other files of such a folder hold rates, length quantiles or engine profiles, not requests.
REQUEST_TRACE_PREFIXES = ("azure_llm_2023", "mooncake", "vtc")


def request_traces(duration_s: float) -> list[Trace]:
    """Reads the beginning of every request trace in the folder named by TRACES, or the excerpt that ships.

    Args:
        duration_s: How much of each, seconds.

    Returns:
        The traces, sorted by file name, at least one.
    """
    folder = os.environ.get("TRACES", "")
    paths = sorted(Path(folder).iterdir()) if folder else []
    files = [path for path in paths if path.name.startswith(REQUEST_TRACE_PREFIXES)]
    return [read_trace(path, duration_s=duration_s) for path in files] or [read_trace(duration_s=duration_s)]


def merged(traces: list[Trace], requests_per_s_max: float, duration_s: float) -> tuple[TraceRequest, ...]:
    """Lays traces over each other and thins them evenly to what a machine can carry.

    Args:
        traces: Each begins at 0.
        requests_per_s_max: Most requests per second on average; every n-th request is kept.
        duration_s: Length of the result, seconds.

    Returns:
        Requests sorted by arrival; each trace is a client of its own where it names none.
    """
    every = [
        dataclasses.replace(request, client=f"{trace.name}/{request.client}" if request.client else "")
        for trace in traces
        for request in trace.requests
    ]
    every.sort(key=lambda request: request.arrival_s)
    keep = min(1.0, requests_per_s_max * duration_s / len(every))
    return tuple(request for number, request in enumerate(every) if int(number * keep) != int((number + 1) * keep))
