"""What the tenants ask for: requests whose true length is known here and to nobody else.

A simulated engine ends an answer where its text says so. Seeds are tried until the answer ends near the length that was
drawn, so neither `max_tokens` nor `ignore_end_token` gives the length away: the router has to estimate.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.traces import request_traces
from engines.simulated.engine import BYTES_PER_TOKEN
from engines.simulated.text import OutputText

INPUT_TOKENS_MEDIAN: Final = 150
INPUT_SIGMA: Final = 0.6
OUTPUT_TOKENS_MEDIAN: Final = 20
OUTPUT_SIGMA: Final = 0.9
"""Short, so that two cores relay enough requests for a share of half a percent to mean something; the shape is that of
chat traffic (recorded outputs have a standard deviation of 0.8 to 1.3 in logarithms)."""

OUTPUT_TOKENS_MEAN: Final = OUTPUT_TOKENS_MEDIAN * math.exp(OUTPUT_SIGMA**2 / 2)
MAX_TOKENS: Final = 4 * round(OUTPUT_TOKENS_MEAN)
"""What clients set: four times what they usually get. No drawn length is above it, so nothing ends there."""
_INPUT_TOKENS_MAX: Final = 500

_TRACE_S: Final = 600.0
_TOLERANCE: Final = 0.05  # of a length, and at least one token
_WORDS: Final = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "for",
    "it",
    "on",
    "are",
    "as",
    "with",
    "they",
    "be",
    "at",
)


@dataclass(frozen=True, slots=True)
class Item:
    """One request and what it must bring.

    Attributes:
        prompt: Text, ASCII.
        seed: Makes the engine's answer end where it does.
        input_tokens: How long the prompt is.
        output_tokens: How long the answer is.
    """

    prompt: str
    seed: int
    input_tokens: int
    output_tokens: int


def lengths(count: int, source: random.Random) -> Iterator[tuple[int, int]]:
    """Draws (input, output) lengths: log-normal, or those of the traces in the folder named by TRACES.

    Args:
        count: How many.
        source: Of the randomness.
    """
    pairs = _recorded()
    for _ in range(count):
        if pairs:
            into, out = source.choice(pairs)
        else:
            into = source.lognormvariate(math.log(INPUT_TOKENS_MEDIAN), INPUT_SIGMA)
            out = source.lognormvariate(math.log(OUTPUT_TOKENS_MEDIAN), OUTPUT_SIGMA)
        yield min(_INPUT_TOKENS_MAX, max(1, round(into))), min(MAX_TOKENS - 1, max(1, round(out)))


def pool(count: int, seed: int) -> Sequence[Item]:
    """Makes requests; the same seed makes the same ones.

    Args:
        count: How many, 1 or more.
        seed: Of everything drawn.
    """
    source = random.Random(seed)
    return [_item(into, out, source) for into, out in lengths(count, source)]


def _item(input_tokens: int, output_tokens: int, source: random.Random) -> Item:
    size = input_tokens * BYTES_PER_TOKEN
    prompt = f"{source.getrandbits(48):012x} " + " ".join(source.choices(_WORDS, k=size // 2 + 1))
    prompt = prompt[:size]
    tolerance = max(1, round(_TOLERANCE * output_tokens))
    while True:
        seed = source.getrandbits(32) or 1
        found = OutputText(prompt, max_tokens=output_tokens + tolerance + 1, seed=seed).tokens
        if abs(found - output_tokens) <= tolerance and found < MAX_TOKENS:
            return Item(prompt, seed, input_tokens, found)


def _recorded() -> list[tuple[float, float]]:
    """Lengths of every trace given, scaled so that inputs and outputs have the means of the drawn ones."""
    if not os.environ.get("TRACES"):
        return []
    requests = [request for trace in request_traces(_TRACE_S) for request in trace.requests]
    input_mean = INPUT_TOKENS_MEDIAN * math.exp(INPUT_SIGMA**2 / 2)
    into = input_mean * len(requests) / sum(request.input_tokens for request in requests)
    out = OUTPUT_TOKENS_MEAN * len(requests) / sum(request.output_tokens for request in requests)
    return [(request.input_tokens * into, request.output_tokens * out) for request in requests]
