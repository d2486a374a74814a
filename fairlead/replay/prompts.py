"""Makes prompts of recorded lengths: traces hold lengths, not text.

Lengths are scaled by one factor for all requests of a model, so that the shape of the trace survives on a model with
a short context or a slow machine; what still does not fit is cut to the model's limits and counted.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.errors import InvalidArgumentError
from fairlead.replay.traces import BLOCK_TOKENS, TraceRequest
from fairlead.sdk.results import ModelInfo

FITTING_SHARE = 0.95
"""Share of the requests that must fit the model uncut when the factor is chosen here."""
CONTEXT_SHARE = 0.9
"""Share of the context a prompt may fill beside its answer: bytes per token are an estimate."""
_COMMON = (
    "the of and to in is that for it was on are as with they be at one have this from by hot but some what there we "
    "can out other were all your when up use word how said an each she which do their time if will way about many "
    "then them would write like so these her long make thing see him two has look more day could go come did my sound "
    "no most number who over know water than call first people may down side been now find"
)
_WORDS = tuple(_COMMON.split())


@dataclass(frozen=True, slots=True)
class Lengths:
    """What is asked of the model for one recorded request."""

    input_tokens: int
    """Prompt length, 1 or more."""
    output_tokens: int
    """Answer length, 1 or more."""
    cut: bool
    """Whether the scaled lengths did not fit the model and were cut."""


@dataclass(frozen=True, slots=True)
class LengthScale:
    """How recorded lengths become lengths one model can take."""

    factor: float
    """Multiplies inputs and outputs alike."""
    context_tokens: int
    """Longest prompt plus answer."""
    output_tokens_max: int
    """Longest answer."""

    def apply(self, request: TraceRequest) -> Lengths:
        """Scales one request: at least one token each way, answer before prompt, cut where they do not fit."""
        wanted_out = max(1, round(request.output_tokens * self.factor))
        out = max(1, min(wanted_out, self.output_tokens_max, self.context_tokens // 2))
        wanted_in = max(1, round(request.input_tokens * self.factor))
        into = max(1, min(wanted_in, int((self.context_tokens - out) * CONTEXT_SHARE)))
        return Lengths(into, out, cut=(into, out) != (wanted_in, wanted_out))


def choose_scale(requests: Sequence[TraceRequest], model: ModelInfo, factor: float | None) -> LengthScale:
    """Chooses the scale of a trace on a model.

    Args:
        requests: The trace, at least one request.
        model: The model's limits.
        factor: The factor to use, above 0; None for the largest up to 1 at which FITTING_SHARE of them fit uncut.

    Returns:
        The scale.

    Raises:
        InvalidArgumentError: The factor is not above 0.
    """
    if factor is not None and not factor > 0:
        raise InvalidArgumentError(f"the length factor must be above 0, not {factor}", field="length_factor")
    if factor is None:
        # A prompt may fill CONTEXT_SHARE of what its answer leaves: input / share + output <= context.
        sums = sorted(request.input_tokens / CONTEXT_SHARE + request.output_tokens for request in requests)
        outputs = sorted(request.output_tokens for request in requests)
        at = min(len(requests) - 1, int(len(requests) * FITTING_SHARE))
        limit = min(model.output_tokens_max, model.context_tokens // 2)
        factor = min(1.0, model.context_tokens / sums[at], limit / outputs[at])
    return LengthScale(factor, model.context_tokens, model.output_tokens_max)


def describe_scale(scale: LengthScale, requests: Sequence[TraceRequest], model: ModelInfo) -> str:
    """Says in one sentence what became of the lengths.

    Args:
        scale: The scale in use.
        requests: The requests it is applied to.
        model: The model.
    """
    cut = sum(scale.apply(request).cut for request in requests)
    changed = (
        "lengths are as recorded" if scale.factor == 1 else f"lengths are the recorded ones times {scale.factor:.3g}"
    )
    return (
        f"{changed} for {model.id} (context {model.context_tokens} tokens); {cut} of {len(requests)} requests were cut "
        "to fit; prompts are made-up words of those lengths"
    )


class PromptMaker:
    """Makes the prompts of one model; the same request always gives the same prompt.

    Requests that share leading blocks of their prefix share the text of those blocks, and nothing else.

    Args:
        bytes_per_token: The model's bytes of text per token, above 0.
        factor: The scale of the lengths: a recorded block shrinks with it.
    """

    def __init__(self, bytes_per_token: float, factor: float) -> None:
        if not bytes_per_token > 0:
            raise InvalidArgumentError("bytes per token must be above 0", field="bytes_per_token")
        self._bytes_per_token = bytes_per_token
        self._block_bytes = max(1, round(BLOCK_TOKENS * factor * bytes_per_token))

    def prompt(self, number: int, request: TraceRequest, input_tokens: int) -> str:
        """Makes one prompt.

        Args:
            number: The request's place in the trace: requests without known prefixes share none.
            request: The recorded request.
            input_tokens: How long the prompt is to be, tokens.

        Returns:
            ASCII words of round(input_tokens * bytes_per_token) bytes, at least one.
        """
        length = max(1, round(input_tokens * self._bytes_per_token))
        parts: list[str] = []
        missing = length
        for block in request.prefix_blocks:
            if missing <= 0:
                break
            parts.append(_text(f"block {block}", self._block_bytes)[:missing])
            missing -= len(parts[-1])
        if missing > 0:
            parts.append(_text(f"request {number}", missing))
        return "".join(parts)


@functools.lru_cache(maxsize=4096)
def _text(seed: str, length: int) -> str:
    source = random.Random(seed)
    # A word and its space are over four letters on average; two more words per length cover the shortest draw.
    text = ""
    while len(text) < length:
        text += " ".join(source.choices(_WORDS, k=length // 4 + 2)) + " "
    return text[:length]
