"""Replays recorded traffic through the SDK and reports what came of it.

from fairlead.replay import ReplayOptions, ReplayTarget, read_trace, replay

trace = read_trace("trace.csv.gz", duration_s=60)
report = await replay(trace.requests, [ReplayTarget("alpha", "fl-...")], ReplayOptions(["127.0.0.1:8081"]))
"""

from fairlead.replay.prompts import LengthScale, PromptMaker, choose_scale
from fairlead.replay.report import Outcome, Percentiles, ReplayReport, Sample, TenantReport
from fairlead.replay.runner import ReplayOptions, ReplayProgress, ReplayTarget, replay
from fairlead.replay.table import footnotes, report_table
from fairlead.replay.traces import Trace, TraceRequest, read_trace

__all__ = [
    "LengthScale",
    "Outcome",
    "Percentiles",
    "PromptMaker",
    "ReplayOptions",
    "ReplayProgress",
    "ReplayReport",
    "ReplayTarget",
    "Sample",
    "TenantReport",
    "Trace",
    "TraceRequest",
    "choose_scale",
    "footnotes",
    "read_trace",
    "replay",
    "report_table",
]
