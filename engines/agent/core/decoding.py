"""How fast an engine decodes, added up batch by batch at the cost of a few additions each.

What a reader holds up is no fault of the engine's: time counts from one batch that had to be waited for to the next,
and what came while nobody was asking is left out, tokens and time alike. Work is priced here, by the profile in force,
token by token; a router's prices rest on lengths it guessed before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from model_units.cost import CostForm, CostProfile

# A batch that took less was lying there when it was asked for: an engine's step takes milliseconds.
_WAITED_S_MIN: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Sums:
    """What one window saw.

    Attributes:
        decoding_s: Time that sequences spent between their tokens, over all sequences, seconds.
        tokens: Tokens that time stands for; first ones are not among them, they end a prefill.
        work_s: Work served, by the profile's prices, replica-seconds.
        busy_s: Time the engine had work, seconds.
        window_s: Length of the window, seconds.
    """

    decoding_s: float
    tokens: int
    work_s: float
    busy_s: float
    window_s: float


@dataclass(slots=True)
class Sequence:
    """One request as `DecodeMeter` follows it.

    Attributes:
        input_tokens: Of its prompt, as estimated.
    """

    input_tokens: int
    produced: int = 0
    anchor_s: float = -1.0  # when its last batch arrived, while that is known


class DecodeMeter:
    """Adds up a replica's decoding, batch by batch. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._profile: CostProfile | None = None
        self._growth = 1.0
        self._decoding_s = self._work_s = self._busy_s = 0.0
        self._tokens = 0
        self._awaited = 0
        self._busy_since_s = 0.0
        self._window_began_s = 0.0

    def price_with(self, profile: CostProfile | None, now_s: float) -> None:
        """Begins anew with another profile's prices; with None only what sequences have produced is followed."""
        self._profile = profile
        self._growth = 0.0 if profile is not None and profile.form is CostForm.PRODUCT else 1.0
        self.take(now_s)

    def asked(self, now_s: float) -> None:
        """A reader asks the engine for its next batch."""
        if self._awaited == 0:
            self._busy_since_s = now_s
        self._awaited += 1

    def answered(self, now_s: float) -> None:
        """The engine answered it, or the reader went away."""
        self._awaited -= 1
        if self._awaited == 0:
            self._busy_s += now_s - self._busy_since_s

    def batch(self, sequence: Sequence, tokens: int, asked_s: float, now_s: float) -> None:
        """A batch arrived.

        Args:
            sequence: Whose.
            tokens: New tokens; a batch without any says nothing.
            asked_s: When its reader had asked for it.
            now_s: When it came.
        """
        if tokens <= 0:
            return
        before = sequence.produced
        sequence.produced = before + tokens
        profile = self._profile
        if profile is None:
            sequence.anchor_s = -1.0
            return
        if before == 0:
            self._work_s += _prefill_s(profile, sequence.input_tokens, 0)
        self._work_s += self._decode_s(profile, sequence.input_tokens, before, tokens)
        if now_s - asked_s < _WAITED_S_MIN:
            sequence.anchor_s = -1.0
            return
        if sequence.anchor_s >= 0.0:
            self._tokens += tokens
            self._decoding_s += now_s - sequence.anchor_s
        sequence.anchor_s = now_s

    def settle(self, sequence: Sequence, input_tokens: int, cached_input_tokens: int) -> None:
        """The engine's own counts: what was added by estimate is put right.

        Args:
            sequence: One that ended by itself.
            input_tokens: Of its prompt.
            cached_input_tokens: Those found in a prefix cache.
        """
        profile = self._profile
        if profile is None or not sequence.produced or input_tokens <= 0:
            return
        estimated, produced = sequence.input_tokens, sequence.produced
        self._work_s += _prefill_s(profile, input_tokens, min(max(0, cached_input_tokens), input_tokens))
        self._work_s -= _prefill_s(profile, estimated, 0)
        self._work_s += profile.g * produced * (input_tokens - estimated)

    def take(self, now_s: float) -> Sums:
        """What was added up since the last call, which begins the next window."""
        if self._awaited:
            self._busy_s += now_s - self._busy_since_s
            self._busy_since_s = now_s
        sums = Sums(self._decoding_s, self._tokens, self._work_s, self._busy_s, now_s - self._window_began_s)
        self._decoding_s = self._work_s = self._busy_s = 0.0
        self._tokens = 0
        self._window_began_s = now_s
        return sums

    def _decode_s(self, profile: CostProfile, input_tokens: int, before: int, tokens: int) -> float:
        return tokens * (profile.b + profile.g * (input_tokens + self._growth * (before + tokens / 2.0)))


def _prefill_s(profile: CostProfile, input_tokens: int, cached: int) -> float:
    uncached = input_tokens - cached
    return profile.a * uncached + profile.d * uncached * (input_tokens + cached)
