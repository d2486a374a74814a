"""How many tokens a text has, without a tokenizer.

Tokenizing 4 KB takes 330 to 1,570 us, 100 KB up to 47 ms: far more than the whole routing decision. So prompts are
estimated from their length in bytes and a ratio per model that is learned from the usage engines report; the settled
price uses the engine's own count.
"""

from __future__ import annotations

import math
from typing import Final

from model_units.units import Tokens

_WEIGHT: Final = 0.02
# From here on every observation weighs the same; before, all weigh alike.
_STEADY_OBSERVATIONS: Final = round(1.0 / _WEIGHT)
_START_OBSERVATIONS: Final = 4
# The start ratio counts as that many prompts of this length: a first "Hello" of one token must not overturn it.
_START_TOKENS: Final = 256.0
_RATIO_MIN: Final = 0.1
_RATIO_MAX: Final = 100.0

_ceil: Final = math.ceil


class BytesPerToken:
    """A running ratio of prompt bytes to prompt tokens per model.

    The ratio is that of two running means, not the mean of ratios, so that long prompts, which cost most, count most.

    Args:
        models_max: Most models remembered, 1 or more; the one observed longest ago is forgotten first.
    """

    def __init__(self, *, models_max: int = 10_000) -> None:
        if models_max < 1:
            raise ValueError("models_max must be 1 or more")
        self._models_max = models_max
        # Mean bytes, mean tokens, observations, and the ratio they make.
        self._means: dict[str, tuple[float, float, int, float]] = {}
        self._newest_model: str | None = None

    def ratio(self, model_id: str, *, start: float) -> float:
        """Bytes per token of this model.

        Args:
            model_id: Which model.
            start: The ratio before anything was observed (`Model.bytes_per_token`); out of 0.1 to 100 it is clamped.
        """
        means = self._means.get(model_id)
        return _clamped(start) if means is None else means[3]

    def estimate_tokens(self, model_id: str, prompt_bytes: int, *, start: float) -> Tokens:
        """Estimated tokens of a prompt.

        Args:
            model_id: Which model.
            prompt_bytes: Length of the prompt in UTF-8, 0 or more.
            start: As in `ratio`.

        Returns:
            1 or more: even an empty prompt has its start token.
        """
        means = self._means.get(model_id)
        tokens = _ceil(prompt_bytes / (_clamped(start) if means is None else means[3]))
        return tokens if tokens > 1 else 1  # type: ignore[return-value]  # calling the new type is a call for nothing

    def observe(self, model_id: str, *, prompt_bytes: int, input_tokens: int, start: float) -> None:
        """Learns from an engine's usage.

        Args:
            model_id: Which model.
            prompt_bytes: Length of the prompt in UTF-8; 0 and less is ignored.
            input_tokens: What the engine counted; 0 and less is ignored.
            start: As in `ratio`; the first observations are averaged with it.
        """
        if prompt_bytes <= 0 or input_tokens <= 0:
            return
        if model_id == self._newest_model:
            before = self._means[model_id]
        else:
            self._newest_model = model_id
            before = self._means.pop(model_id) if model_id in self._means else self._first(input_tokens, start)
        mean_bytes, mean_tokens, count, _ = before
        count += 1
        weight = 1.0 / count if count < _STEADY_OBSERVATIONS else _WEIGHT
        mean_bytes += weight * (prompt_bytes - mean_bytes)
        mean_tokens += weight * (input_tokens - mean_tokens)
        ratio = mean_bytes / mean_tokens
        if not _RATIO_MIN <= ratio <= _RATIO_MAX:
            ratio = _clamped(ratio)
        self._means[model_id] = (mean_bytes, mean_tokens, count, ratio)

    def _first(self, input_tokens: int, start: float) -> tuple[float, float, int, float]:
        """What is taken to be known of a model that nothing was observed of."""
        if len(self._means) >= self._models_max:
            del self._means[next(iter(self._means))]
        tokens = max(_START_TOKENS, float(input_tokens))
        return _clamped(start) * tokens, tokens, _START_OBSERVATIONS, 0.0


def _clamped(ratio: float) -> float:
    return min(_RATIO_MAX, max(_RATIO_MIN, ratio)) if math.isfinite(ratio) else 4.0
