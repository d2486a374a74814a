"""What a request will cost, and what it has cost.

Before: prompt tokens from its bytes, output tokens from what this tenant's requests to this model usually produce.
After: the engine's own counts. Both go through the one cost function of `model_units`.
"""

from __future__ import annotations

from typing import Final

from model_units.cost import TOKENS_MAX, Cost, CostProfile, cost_in_range, decode_shape
from model_units.length import OutputLengthEstimator
from model_units.text import BytesPerToken

# What a chat template adds around each turn: role markers and separators, 3 to 5 tokens in the Llama and ChatML
# templates. The learned bytes-per-token ratio absorbs the rest.
TEMPLATE_TOKENS_PER_MESSAGE: Final = 4


class Price:
    """An estimate for one request.

    Attributes:
        input_tokens: Estimated prompt tokens.
        output_tokens: Estimated output tokens, 1 to the request's max_tokens.
        cost: Both parts, mMU.
    """

    __slots__ = ("cost", "input_tokens", "output_tokens")

    def __init__(self, input_tokens: int, output_tokens: int, cost: Cost) -> None:
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.cost = cost


class Pricing:
    """Prices requests and learns from their usage. Holds the two estimators, so one per router process.

    Args:
        lengths: Output length per (tenant, model).
        ratios: Bytes per token per model.
    """

    def __init__(self, lengths: OutputLengthEstimator, ratios: BytesPerToken) -> None:
        self._lengths = lengths
        self._ratios = ratios

    def bytes_per_token(self, model_id: str, start: float) -> float:
        """The ratio in force, for clients that estimate themselves."""
        return self._ratios.ratio(model_id, start=start)

    def estimate(
        self,
        profile: CostProfile,
        *,
        tenant_id: str,
        model_id: str,
        prompt_bytes: int,
        messages: int,
        max_tokens: int,
        runs_to_max: bool,
        bytes_per_token_start: float,
    ) -> Price:
        """Prices a request before it runs.

        Args:
            profile: The model's cost profile.
            tenant_id: Who asks.
            model_id: Which model.
            prompt_bytes: UTF-8 bytes of the prompt, or of all messages together.
            messages: Turns of a conversation; 0 for plain text.
            max_tokens: The request's limit, 1 or more.
            runs_to_max: The request ignores the end token, so its length is known.
            bytes_per_token_start: The model's configured ratio, used until usage has been seen.
        """
        prompt = self._ratios.estimate_tokens(model_id, prompt_bytes, start=bytes_per_token_start)
        input_tokens = prompt + TEMPLATE_TOKENS_PER_MESSAGE * messages
        if input_tokens > TOKENS_MAX:
            input_tokens = TOKENS_MAX
        output_tokens: int = max_tokens
        if not runs_to_max:
            shape = decode_shape(profile, input_tokens)
            output_tokens = self._lengths.estimate(tenant_id, model_id, max_tokens=max_tokens, shape=shape)
        priced_tokens = output_tokens if output_tokens < TOKENS_MAX else TOKENS_MAX
        return Price(input_tokens, output_tokens, cost_in_range(profile, input_tokens, priced_tokens))

    def observe(
        self,
        profile: CostProfile,
        *,
        tenant_id: str,
        model_id: str,
        prompt_bytes: int,
        messages: int,
        input_tokens: int,
        output_tokens: int,
        runs_to_max: bool,
        bytes_per_token_start: float,
    ) -> None:
        """Learns from a request that ended by itself. Arguments as in `estimate`, the counts from the engine."""
        counted = input_tokens - TEMPLATE_TOKENS_PER_MESSAGE * messages
        self._ratios.observe(model_id, prompt_bytes=prompt_bytes, input_tokens=counted, start=bytes_per_token_start)
        if not runs_to_max:
            linear, _ = decode_shape(profile, _clamped(input_tokens))
            self._lengths.observe(tenant_id, model_id, output_tokens, linear=linear)


def settled(profile: CostProfile, input_tokens: int, output_tokens: int, cached_input_tokens: int) -> Cost:
    """Prices counts that come from outside: clamped into the cost function's range instead of refused.

    An engine that reports nonsense must not be able to fail a request that was already answered.

    Args:
        profile: The model's cost profile.
        input_tokens: Prompt tokens.
        output_tokens: Output tokens.
        cached_input_tokens: The part of the prompt found in a cache.
    """
    if not (0 <= cached_input_tokens <= input_tokens <= TOKENS_MAX and 0 <= output_tokens <= TOKENS_MAX):
        input_tokens, output_tokens = _clamped(input_tokens), _clamped(output_tokens)
        cached_input_tokens = min(max(0, cached_input_tokens), input_tokens)
    return cost_in_range(profile, input_tokens, output_tokens, cached_input_tokens)


def _clamped(tokens: int) -> int:
    return tokens if 0 <= tokens <= TOKENS_MAX else TOKENS_MAX if tokens > 0 else 0
