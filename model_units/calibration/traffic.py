"""Traffic classes: the kinds of requests a profile must price right, as quantiles of recorded lengths.

A calibration measures at lengths that such traffic has, and tests its profile on mixes of them. Prompt and answer
lengths are nearly uncorrelated in all of the recordings (|r| up to 0.14), so pairs are drawn independently.

Sources: the statistics of the Azure LLM inference traces 2023 (CC-BY 4.0: "chat", "code"), of the Mooncake
conversation trace (Apache-2.0: "long-context"), of the Chatbot Arena log as sampled by the VTC authors (Apache-2.0:
"short-chat") and of arXiv summarisation as sampled by the Vidur authors (MIT: "summarization").
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

_GOLDEN: Final = 0.6180339887498949

_SHARES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """One kind of traffic.

    Attributes:
        name: For people.
        input_tokens: Quantiles of the prompt's length at 0, 5, 25, 50, 75, 95, 99 and 100 %.
        output_tokens: The same of the answer's length.
    """

    name: str
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]

    def pair(self, input_share: float, output_share: float) -> tuple[int, int]:
        """Lengths at given quantiles, each share 0 to 1."""
        return _at(self.input_tokens, input_share), _at(self.output_tokens, output_share)

    def pairs(self, count: int, context_tokens: int) -> tuple[tuple[int, int], ...]:
        """Pairs that stand for the class: evenly over both distributions, no two with the same rank in either.

        Args:
            count: How many, 1 or more.
            context_tokens: Longest prompt plus answer; longer pairs are cut to it.
        """
        return _pairs(self, count, context_tokens)


@functools.lru_cache(maxsize=64)
def _pairs(traffic: TrafficClass, count: int, context_tokens: int) -> tuple[tuple[int, int], ...]:
    pairs = []
    for index in range(count):
        pair = traffic.pair((index + 0.5) / count, (index * _GOLDEN + 0.5) % 1.0)
        pairs.append(cut(pair, context_tokens))
    return tuple(pairs)


def cut(pair: tuple[int, int], context_tokens: int) -> tuple[int, int]:
    """A pair that fits a context: the answer keeps at most half of it, the prompt the rest."""
    made = max(1, min(pair[1], context_tokens // 2))
    return max(1, min(pair[0], context_tokens - made)), made


def _at(quantiles: tuple[int, ...], share: float) -> int:
    index = min(len(_SHARES) - 2, bisect_right(_SHARES, share) - 1)
    part = (share - _SHARES[index]) / (_SHARES[index + 1] - _SHARES[index])
    return max(1, round(quantiles[index] + part * (quantiles[index + 1] - quantiles[index])))


CLASSES: Final = (
    TrafficClass("chat", (2, 181, 396, 1015, 1204, 4085, 4121, 14050), (7, 39, 81, 115, 393, 448, 598, 1000)),
    TrafficClass("code", (3, 77, 573, 1465, 2724, 7163, 7436, 7437), (6, 6, 9, 13, 23, 88, 248, 1899)),
    TrafficClass("short-chat", (2, 2, 13, 40, 161, 653, 902, 1021), (2, 10, 62, 211, 458, 513, 785, 977)),
    TrafficClass(
        "summarization", (1, 749, 1986, 2730, 3370, 3813, 3933, 4054), (5, 60, 115, 167, 242, 736, 3271, 4056)
    ),
    TrafficClass(
        "long-context", (891, 901, 2414, 7284, 15694, 40369, 89868, 124847), (1, 10, 155, 356, 476, 712, 1168, 2000)
    ),
)
"""The classes every calibration covers."""
