"""Which lengths to measure: those the fit knows least about, among those that traffic has. Pure.

Candidates are quantile pairs of every traffic class, cut to the engine's context. The middle of each class comes first;
then, whenever there is a fit, the candidate whose predicted cost is least certain. A candidate close to one that was
measured tells nothing new and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from model_units.calibration.traffic import CLASSES, cut
from model_units.fit import Fit, Row

_SHARES: Final = (0.5, 0.9, 0.15)
_SAME: Final = math.log(1.35)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths worth measuring.

    Attributes:
        traffic_class: Whose they are.
        input_tokens: Prompt.
        output_tokens: Answer.
    """

    traffic_class: str
    input_tokens: int
    output_tokens: int

    def near(self, other: Lengths) -> bool:
        """Whether one tells nothing that the other does not."""
        return (
            abs(math.log(self.input_tokens / other.input_tokens)) < _SAME
            and abs(math.log(self.output_tokens / other.output_tokens)) < _SAME
        )


def candidates(context_tokens: int) -> tuple[Lengths, ...]:
    """Every candidate, the middles of the classes first, none near an earlier one."""
    chosen: list[Lengths] = []
    pairs = sorted(
        ((read, made) for read in _SHARES for made in _SHARES),
        key=lambda shares: (shares != (0.5, 0.5), _SHARES.index(shares[0]) + _SHARES.index(shares[1]), shares),
    )
    for read, made in pairs:
        for traffic in CLASSES:
            lengths = Lengths(traffic.name, *cut(traffic.pair(read, made), context_tokens))
            if not any(lengths.near(other) for other in chosen):
                chosen.append(lengths)
    return tuple(chosen)


def next_lengths(left: Sequence[Lengths], fit: Fit | None) -> Lengths:
    """What to measure next.

    Args:
        left: Candidates that were not measured, at least one, in the order of `candidates`.
        fit: The fit so far, if there is one that knows its uncertainty.
    """
    if fit is None or not fit.degrees_of_freedom:
        return left[0]
    return max(left, key=lambda each: _uncertainty(fit, each))


def _uncertainty(fit: Fit, lengths: Lengths) -> float:
    return fit.relative_uncertainty(Row.of_request(lengths.input_tokens, lengths.output_tokens, 1.0))
