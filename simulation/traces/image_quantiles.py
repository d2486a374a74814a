"""Quantiles of requests with and without images (Azure multimodal log) as requests, Poisson at a rate asked for.

Each kind of request is a client. The number of images and the input tokens of one request are drawn by one share,
because the images are most of the input. The quantiles end at 1 and 99 percent: beyond them they are flat, so the
rarest giants are missing.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final

import numpy as np

from fairlead.errors import InvalidArgumentError
from fairlead.replay.files import csv_rows
from fairlead.replay.traces import TOKENS_MAX
from simulation.traces.distributions import QuantileFunction
from simulation.traces.lengths_only import asked_rate_per_s, poisson
from simulation.traces.workload import Batch, Selection, Workload, check_size, whole_tokens, workload_of

QUANTILE_COLUMNS: Final = ("request_kind", "field", "percentile", "value")

_FIELDS: Final = ("num_images", "input_tokens", "output_tokens")
_DURATION_S: Final = 600.0  # of a source without times, unless asked otherwise


def quantiles_workload(path: Path, selection: Selection) -> Workload:
    """Draws requests from quantiles per kind of request.

    Args:
        path: CSV with `request_kind,field,percentile,value`; fields `input_tokens`, `output_tokens`, `num_images`.
        selection: `requests_per_s` is needed, of all kinds together, which share it equally; 600 s without
            `duration_s`.

    Raises:
        InvalidArgumentError: The file is wrong, or no rate was given.
    """
    kinds = _read(path)
    rate_per_s = asked_rate_per_s(selection, path.name)
    duration_s = selection.duration_s or _DURATION_S
    check_size(rate_per_s * duration_s, path.name)
    batches = []
    for kind, fields in kinds.items():
        draws = selection.stream("quantiles", kind)
        times = poisson(draws, rate_per_s / len(kinds), duration_s)
        shares = draws.random((2, len(times)))
        images = np.rint(fields["num_images"].at(shares[0])).astype(np.int64) if "num_images" in fields else None
        inputs, outputs = fields["input_tokens"].at(shares[0]), fields["output_tokens"].at(shares[1])
        batches.append(Batch(kind, times, whole_tokens(inputs), whole_tokens(outputs), images))
    notes = [
        "the file has no times: arrivals are Poisson",
        f"the file does not say how common each kind is: {' and '.join(kinds)} get equal rates",
        "quantiles are flat beyond the first and the last percentile",
    ]
    return workload_of(path.name, batches, notes, duration_s)


def _read(path: Path) -> dict[str, dict[str, QuantileFunction]]:
    points: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in csv_rows(path, QUANTILE_COLUMNS):
        field = row.text("field")
        if field not in _FIELDS:
            row.lines.fail(f"unknown field {field!r}; known: {', '.join(_FIELDS)}")
        share = row.number("percentile", high=100) / 100
        points[row.text("request_kind")][field].append((share, row.number("value", high=TOKENS_MAX)))
    for kind, fields in points.items():
        for field in ("input_tokens", "output_tokens"):
            if field not in fields:
                raise InvalidArgumentError(f"{path.name}: {kind!r} has no {field}", field="trace")
        for field, pairs in fields.items():
            pairs.sort()
            shares, values = np.array(pairs).T
            if (np.diff(shares) <= 0).any() or (np.diff(values) < 0).any():
                raise InvalidArgumentError(
                    f"{path.name}: {field} of {kind!r} must not fall, nor name a percentile twice", field="trace"
                )
    return {
        kind: {field: QuantileFunction.of(pairs) for field, pairs in fields.items()} for kind, fields in points.items()
    }
