"""The length distributions of ServeGen's clients: read, pooled where a client has none, and drawn from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from fairlead.errors import InvalidArgumentError
from fairlead.replay.files import CsvRow, csv_rows
from fairlead.replay.traces import TOKENS_MAX
from simulation.traces.distributions import QuantileFunction
from simulation.traces.workload import Floats, Ints, whole_tokens

LENGTH_COLUMNS: Final = ("window_start_s", "client", "field", "q0", "q50", "q100")
WINDOW_S: Final = 21_600.0
"""Length of a window of the lengths. Source: ServeGen."""

_QUANTILE: Final = re.compile(r"q(\d+(?:\.\d+)?)")
_OUTPUT: Final = "output_tokens"
_IMAGES: Final = "image_count"
# What a prompt is made of. Tokens of a kind go with their number: both are drawn by one share.
_INPUTS: Final = ("input_tokens", "text_tokens", "image_tokens", "audio_tokens", "video_tokens")
_IMAGE_TOKENS: Final = "image_tokens"

Fields = dict[str, QuantileFunction]


class LengthTable:
    """The distributions by client and window.

    Args:
        rows: Quantile functions by (client, window start) and field.
    """

    def __init__(self, rows: dict[tuple[str, float], Fields]) -> None:
        self._rows = rows
        self._starts: dict[str, list[float]] = defaultdict(list)
        for client, start_s in sorted(rows):
            self._starts[client].append(start_s)
        self._with_images = any(_IMAGES in fields for fields in rows.values())
        self._requests: dict[tuple[str, float], float] = defaultdict(float)
        self._sent: dict[str, float] = defaultdict(float)
        self._pools: dict[float, tuple[list[Fields], Floats]] = {}
        self._pooled: dict[str, int] = defaultdict(int)
        self._drawn = 0
        self._moved = 0
        self._raised = 0

    def weigh(self, sent: Iterable[tuple[float, str, float]]) -> None:
        """Says how much everybody sent, (window start, client, requests), so that pools keep their proportions."""
        for start_s, client, requests in sent:
            self._requests[client, start_s // WINDOW_S * WINDOW_S] += requests
            self._sent[client] += requests

    def draw(self, draws: np.random.Generator, client: str, at_s: float, count: int) -> tuple[Ints, Ints, Ints | None]:
        """Draws (inputs, outputs, images or None) for some requests of a client.

        Args:
            draws: Randomness.
            client: Whose.
            at_s: When, in the time of the file.
            count: How many, 1 or more.
        """
        self._drawn += count
        start_s = at_s // WINDOW_S * WINDOW_S
        if client not in self._starts:
            self._pooled[client] += count
            return self._from_pool(draws, start_s, count)
        nearest_s = min(self._starts[client], key=lambda other_s: (abs(other_s - start_s), other_s))
        self._moved += count * (nearest_s != start_s)
        return self._from_fields(draws, self._rows[client, nearest_s], count)

    def notes(self) -> list[str]:
        """What had to be filled in for what was drawn so far."""
        notes = []
        if self._pooled:
            share = sum(self._pooled.values()) / self._drawn
            notes.append(
                f"{len(self._pooled)} clients have no lengths of their own: {share:.0%} of the requests drew theirs "
                "from the other clients' distributions, each weighted by what it sent"
            )
        if self._moved:
            share = self._moved / self._drawn
            notes.append(f"{share:.0%} of the requests drew lengths from their client's nearest window that has some")
        if self._raised:
            notes.append(f"{self._raised} lengths of 0 tokens were taken as 1")
        if self._with_images:
            notes.append("tokens of images, audio and video count as input")
        return notes

    def _from_pool(self, draws: np.random.Generator, start_s: float, count: int) -> tuple[Ints, Ints, Ints | None]:
        donors, weights = self._pool(start_s)
        chosen = draws.choice(len(donors), size=count, p=weights)
        inputs, outputs = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        images = np.zeros(count, dtype=np.int64) if self._with_images else None
        for donor in np.unique(chosen):
            where = np.flatnonzero(chosen == donor)
            inputs[where], outputs[where], some = self._from_fields(draws, donors[donor], len(where))
            if images is not None and some is not None:
                images[where] = some
        return inputs, outputs, images

    def _pool(self, start_s: float) -> tuple[list[Fields], Floats]:
        """Distributions of a window with their weights; those of all windows where it has none."""
        if start_s not in self._pools:
            keys = [key for key in self._rows if key[1] == start_s] or list(self._rows)
            weights = np.array([self._requests.get(key, 0.0) for key in keys])
            if not weights.any():  # rates of another week: by what each sends at all
                weights = np.array([self._sent.get(client, 0.0) for client, _ in keys])
            if not weights.any():
                weights = np.ones(len(keys))
            self._pools[start_s] = ([self._rows[key] for key in keys], weights / weights.sum())
        return self._pools[start_s]

    def _from_fields(self, draws: np.random.Generator, fields: Fields, count: int) -> tuple[Ints, Ints, Ints | None]:
        total = np.zeros(count)
        images = None
        for name in _INPUTS:
            if name in fields:
                shares = draws.random(count)
                total += fields[name].at(shares)
                if name == _IMAGE_TOKENS and _IMAGES in fields:
                    images = np.rint(fields[_IMAGES].at(shares)).astype(np.int64)
        output = fields[_OUTPUT].at(draws.random(count))
        self._raised += int((np.rint(total) < 1).sum() + (np.rint(output) < 1).sum())
        return whole_tokens(total), whole_tokens(output), images


def read_lengths(path: Path) -> LengthTable:
    """Reads a `*_lengths*` file.

    Raises:
        InvalidArgumentError: It is damaged, empty, or a row is wrong: a quantile that is no number, falls, or is longer
            than any context; a field twice; a client without input or output lengths.
    """
    rows: dict[tuple[str, float], Fields] = defaultdict(dict)
    for row in csv_rows(path, LENGTH_COLUMNS):
        key = (row.text("client"), row.number("window_start_s"))
        name = row.text("field")
        if name in rows[key]:
            row.lines.fail(f"{name} of client {key[0]!r} is there twice for this window")
        rows[key][name] = _quantiles(row)
    for (client, start_s), fields in rows.items():
        if _OUTPUT not in fields or not any(name in fields for name in _INPUTS):
            raise InvalidArgumentError(
                f"{path.name}: client {client!r} lacks input or output lengths in the window of {start_s:g} s",
                field="trace",
            )
    return LengthTable(dict(rows))


def _quantiles(row: CsvRow) -> QuantileFunction:
    points = sorted(
        (float(match[1]) / 100, row.number(column, high=TOKENS_MAX))
        for column in row.values
        if (match := _QUANTILE.fullmatch(column))
    )
    if points[-1][0] > 1 or any(late < early for (_, early), (_, late) in pairwise(points)):
        row.lines.fail("quantiles must not fall from q0 to q100")
    return QuantileFunction.of(points)
