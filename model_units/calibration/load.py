"""A load to put on a replica, and what it comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

LENGTHS_MAX = 4_096
"""Most pairs of lengths in one load."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Requests without end, a fixed number at a time.

    Attributes:
        lengths: (input tokens, output tokens) to draw from, each 1 or more; one pair means all alike.
        concurrency: Requests at a time, 1 or more.
        window_s: Measured time after the warm-up, at least, above 0.
        time_max_s: The whole experiment ends after this long, above 0.
        seed: Of the order of lengths.

    Raises:
        ValueError: A value is out of its range; the message names it.
    """

    lengths: tuple[tuple[int, int], ...]
    concurrency: int
    window_s: float
    time_max_s: float
    seed: int = 1

    def __post_init__(self) -> None:
        if not 1 <= len(self.lengths) <= LENGTHS_MAX:
            raise ValueError(f"lengths must be 1 to {LENGTHS_MAX} pairs, not {len(self.lengths)}")
        if any(read < 1 or made < 1 for read, made in self.lengths):
            raise ValueError("lengths must be 1 or more")
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be 1 or more, not {self.concurrency}")
        for name in ("window_s", "time_max_s"):
            value: float = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load came to. The window begins and ends with a first token, so that it holds whole prefills.

    Attributes:
        window_s: Measured time.
        engine_s: Replica time from the first request to the end, warm-up included.
        first_tokens: Requests that got their first token inside the window.
        output_tokens: Output tokens inside the window, first tokens included.
        decoding_s: Integral over the window of the number of requests between their first and their last token.
        input_tokens: Sum of the prompts' lengths of the requests counted in first_tokens: exact in virtual time; on a
            real engine those expected from what it counted for the prompts before, which it confirms only at the end.
        input_squares: Sum of the squares of the same lengths.
        context_tokens: Sum over the output tokens of their context: the prompt and the answer before them.
        ttft_s_p50: Median time to first token of requests that began after the warm-up; 0 where none has one.
        ttft_s_p95: 95th percentile of the same.
        cut_short: The load ended at time_max_s before its window was full.

    Raises:
        ValueError: A number is negative or not finite; the message names it.
    """

    window_s: float
    engine_s: float
    first_tokens: int
    output_tokens: int
    decoding_s: float
    input_tokens: int
    input_squares: float
    context_tokens: float
    ttft_s_p50: float
    ttft_s_p95: float
    cut_short: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value: float = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"a measurement's {field.name} must be a number from 0 on, not {value}")

    @property
    def usable(self) -> bool:
        """Whether the window holds any work."""
        return self.window_s > 0 and self.output_tokens > 0 and self.first_tokens > 0

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first; 0 where no answer had a second one."""
        later = self.output_tokens - self.first_tokens
        return self.decoding_s / later if later > 0 else 0.0

    @property
    def decoding_mean(self) -> float:
        """Sequences that decoded at a time, on average."""
        return self.decoding_s / self.window_s if self.window_s > 0 else 0.0
