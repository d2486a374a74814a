"""How long an answer will be, before it exists.

At admission the output length is unknown. What matters is not one request, whose length nobody can tell, but that the
prices of many admitted requests add up to what they will cost. Two things stand in the way of a plain mean: the price
has a term in the square of the length, so that heavy tails cost more than their mean; and length may go with the
prompt's, whose size makes each token dearer. So the estimator learns the mean weighted by the price per token and the
mean square, and estimates the length whose price is the expected price. Per minute of recorded traces the sum is then
1 to 8 % off, nearly without bias; a plain mean is 1 to 13 % off, reserving `max_tokens` 60 to 320 % too high, charging
the input alone 8 to 80 % too low. The caller extends its hold while a stream outruns the estimate and settles exactly
at the end.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from model_units.cost import TOKENS_MAX
from model_units.units import Tokens

# One new length moves the mean by 2 %: about the last fifty requests count, enough to average heavy-tailed lengths and
# few enough to follow a change of traffic within a minute at one request per second.
_WEIGHT: Final = 0.02

# From here on every observation weighs the same; before, all weigh alike.
_STEADY_OBSERVATIONS: Final = round(1.0 / _WEIGHT)

# The prior counts as this many observations, so that the first odd request does not become the whole estimate.
_PRIOR_OBSERVATIONS: Final = 4

# Mean square over squared mean before anything is known: that of a memoryless length. Recorded traces have 1.5 to 5.9.
_PRIOR_SQUARE: Final = 2.0

# A stream that outruns its estimate is extended by half of what it has produced, and at least by this much, so that a
# long answer needs a handful of extensions and a short one is not over-held. The mean remaining length after a
# histogram of the very trace saves 1.4 to 2.1 extensions only down to 1.3 to 1.7, and covers better on one trace of
# four: not worth keeping histograms for.
_EXTENSION_TOKENS_MIN: Final = 32

_sqrt: Final = math.sqrt


class _Means:
    """Running means, begun at 0: `unlearned` is the share of them that a prior has still to fill."""

    __slots__ = ("observations", "square", "unlearned", "weight", "weighted_length")

    def __init__(
        self, weight: float = 0.0, weighted_length: float = 0.0, square: float = 0.0, unlearned: float = 1.0
    ) -> None:
        self.weight = weight
        self.weighted_length = weighted_length
        self.square = square
        self.unlearned = unlearned
        self.observations = _PRIOR_OBSERVATIONS


class OutputLengthEstimator:
    """Running means of output lengths per (tenant, model), which begin at those of the model's other tenants.

    A request that runs to max_tokens on purpose (`ignore_end_token`) needs no estimate and should not be observed.

    Args:
        prior_tokens: The estimate before anything was observed, 1 or more.
        keys_max: Most (tenant, model) pairs remembered, 1 or more, and most models; the one observed longest ago is
            forgotten first.
    """

    def __init__(self, *, prior_tokens: int = 256, keys_max: int = 100_000) -> None:
        if prior_tokens < 1 or keys_max < 1:
            raise ValueError("prior_tokens and keys_max must be 1 or more")
        self._prior = float(prior_tokens)
        self._keys_max = keys_max
        # Both in order of the last observation.
        self._pairs: OrderedDict[tuple[str, str], _Means] = OrderedDict()
        self._models: OrderedDict[str, _Means] = OrderedDict()
        self._newest_model: str | None = None

    def __len__(self) -> int:
        return len(self._pairs)

    def estimate(
        self, tenant_id: str, model_id: str, *, max_tokens: int, shape: tuple[float, float] = (1.0, 0.0)
    ) -> Tokens:
        """The output length at which the next request has its expected price.

        Args:
            tenant_id: Who asks.
            model_id: Which model.
            max_tokens: The request's own limit, 1 or more.
            shape: (linear, square): an answer of O tokens costs in proportion to linear * O + square * O^2, as
                `cost.decode_shape` says; the first above 0, the second 0 or more. As it is, the price is the length.

        Returns:
            1 to `max_tokens`.
        """
        linear, square = shape
        model, pair = self._models.get(model_id), self._pairs.get((tenant_id, model_id))
        if model is None:
            length, mean_square = self._prior, _PRIOR_SQUARE * self._prior * self._prior
        elif pair is None:
            length, mean_square = model.weighted_length / model.weight, model.square
        else:
            rest = pair.unlearned
            length = (pair.weighted_length + rest * model.weighted_length) / (pair.weight + rest * model.weight)
            mean_square = pair.square + rest * model.square
        if square > 0.0:
            price = linear * length + square * mean_square
            # The positive root of square * L^2 + linear * L = price, without cancellation.
            length = 2.0 * price / (linear + _sqrt(linear * linear + 4.0 * square * price))
        tokens = round(length)
        if tokens > max_tokens:
            tokens = max_tokens
        return tokens if tokens > 1 else 1  # type: ignore[return-value]  # calling the new type is a call for nothing

    def observe(self, tenant_id: str, model_id: str, output_tokens: int, *, linear: float = 1.0) -> None:
        """Learns from a finished request; cancelled and failed ones say nothing about length and are not observed.

        Args:
            tenant_id: Who asked.
            model_id: Which model.
            output_tokens: What it produced; clamped to 0 to 10,000,000.
            linear: The first part of this request's `shape`: how dear its tokens were, above 0.
        """
        length = float(output_tokens if 0 <= output_tokens <= TOKENS_MAX else TOKENS_MAX if output_tokens > 0 else 0)
        key = (tenant_id, model_id)
        model = self._models.get(model_id)
        if model is None:
            model = _Means(linear, linear * self._prior, _PRIOR_SQUARE * self._prior * self._prior, 0.0)
            self._models[model_id] = model
            if len(self._models) > self._keys_max:
                self._models.popitem(last=False)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = _Means()
            if len(self._pairs) > self._keys_max:
                self._pairs.popitem(last=False)
        weighted, square = linear * length, length * length
        for means in (model, pair):
            count = means.observations = means.observations + 1
            step = 1.0 / count if count < _STEADY_OBSERVATIONS else _WEIGHT
            means.weight += step * (linear - means.weight)
            means.weighted_length += step * (weighted - means.weighted_length)
            means.square += step * (square - means.square)
            means.unlearned *= 1.0 - step
        if model_id != self._newest_model:
            self._newest_model = model_id
            self._models.move_to_end(model_id)
        self._pairs.move_to_end(key)


def next_covered_tokens(delivered: int, max_tokens: int) -> int:
    """How many output tokens a hold should cover once a stream has outrun it.

    Args:
        delivered: Output tokens so far.
        max_tokens: The request's limit.

    Returns:
        More than `delivered`, at most `max_tokens` (or `delivered`, when the engine overshoots its limit).
    """
    more = delivered // 2
    covered = delivered + (more if more > _EXTENSION_TOKENS_MIN else _EXTENSION_TOKENS_MIN)
    if covered > max_tokens:
        covered = max_tokens
    return covered if covered > delivered else delivered
