"""What a request costs: the cost function and the profile that carries its constants.

For input tokens I, of which H were found in a prefix cache, and output tokens O, in replica-seconds:

    prefill = a * (I - H) + d * (I^2 - H^2)
    decode  = b * O       + g * O * (I + O / 2)

`a` is prefill projection work, `d` prefill attention, `b` a sequence's share of the decode steps and `g` the reading of
its growing KV cache (the sum of the contexts over the output is O * (I + O/2)). Against the true, capacity-based cost
of 3,700 (input, output) pairs this form is 0.9 to 2.3 % off, where `aI + bO` is 18 to 35 % off.

Example: 4,000 input and 200 output tokens on Llama 3.1 8B on an H100 take 0.0838 + 0.0427 replica-seconds: 140 mMU of
prefill and 72 mMU of decode, 0.212 MU.

The two parts stay apart because pending prefill decides the time to first token; sum them where a scalar is wanted.

A second form, `a * I + b * O + g * I * O`, is kept for comparison: it is 13 to 25 % off on the same pairs.

Images: their tokens are input tokens; each costs `image_s` of the encoder on top, as prefill. What a CPU spends on
decoding and resizing them is a resource of its own, not part of the price: `image_cpu_seconds`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from model_units.units import MilliModelUnits, from_replica_seconds

TOKENS_MAX: Final = 10_000_000
"""Longest prompt or output that is priced; the most a model's context may be set to."""

# Beyond these a number is a typing error, not a measurement: one token costs at most ten seconds of a replica.
_LINEAR_MAX_S: Final = 10.0
_QUADRATIC_MAX_S: Final = 1e-2
_TPOT_OBJECTIVE_MAX_MS: Final = 60_000.0


@dataclass(frozen=True, slots=True)
class Cost:
    """A price, split by what it loads.

    Attributes:
        prefill_milli_mu: Reading the prompt, mMU, 0 or more.
        decode_milli_mu: Producing the output, mMU, 0 or more.
    """

    prefill_milli_mu: MilliModelUnits
    decode_milli_mu: MilliModelUnits

    @property
    def total_milli_mu(self) -> MilliModelUnits:
        """Both parts: what quota, billing and autoscaling count."""
        return MilliModelUnits(self.prefill_milli_mu + self.decode_milli_mu)


class CostForm(enum.Enum):
    """Which terms the cost function has."""

    ATTENTION = "attention"
    """a*I + d*I^2 for prefill, b*O + g*O*(I + O/2) for decode."""
    PRODUCT = "product"
    """a*I for prefill, b*O + g*I*O for decode; d is 0."""


COEFFICIENTS: Final = ("a", "b", "d", "g")
"""Names of the coefficients, in the order of every vector of them."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a profile's measurement says about its own quality.

    Attributes:
        intervals: 95 % confidence interval (low, high) of each coefficient, by its name.
        hold_out_error: Cost-weighted mean error on points left out of the fit, 0.02 for 2 %.
        class_errors: Signed error of the predicted capacity by traffic class, 0.02 for 2 % too dear.
        points: Lengths that were measured.
        engine_s: Replica time the measurement took, seconds.
        latency_curve: (intensity, TPOT) in milliseconds, ascending in both: the time per output token a healthy
            replica shows while the costs per output token of the sequences it decodes add up to that intensity. Empty
            where it was not measured.
        latency_spread: Typical relative distance of measurements from that curve.
    """

    intervals: Mapping[str, tuple[float, float]] = field(default_factory=lambda: MappingProxyType({}))
    hold_out_error: float = 0.0
    class_errors: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    points: int = 0
    engine_s: float = 0.0
    latency_curve: tuple[tuple[float, float], ...] = ()
    latency_spread: float = 0.0

    @property
    def stated_error(self) -> float:
        """The worst the profile admits to: of the hold-out error and every traffic class's."""
        return max([self.hold_out_error, *(abs(error) for error in self.class_errors.values())])


@dataclass(frozen=True, slots=True)
class CostProfile:
    """The constants of the cost function for one (model, hardware, engine, latency objective).

    Constants move by up to half with the objective, so a profile is only true for the one it was fitted at.

    Attributes:
        profile_id: "model/hardware/version", for example "llama-3.1-8b/h100/1".
        model: The model the constants were measured on.
        hardware: Hardware label: "h100", "a100", "h100-tp4", "cpu-2core".
        engine: Engine and version the constants were measured on.
        tpot_objective_ms: The time per output token that full load still keeps, above 0 up to 60,000.
        a: Replica-seconds per uncached input token, 0 to 10.
        b: Replica-seconds per output token, 0 to 10.
        d: Replica-seconds per input token squared, 0 to 0.01.
        g: Replica-seconds per output token and token of context, 0 to 0.01.
        provenance: Where the constants come from, for people.
        version: Grows with every new fit of the same (model, hardware), 1 or more.
        form: Which terms there are.
        ttft_objective_ms: 95th percentile of the time to first token that full load keeps, 0 (none) up to 3,600,000.
        image_s: Replica-seconds per image, 0 to 10.
        image_cpu_s: CPU-seconds of preprocessing per image, 0 to 100.
        create_time: When it was measured, RFC 3339 in UTC; empty for those that ship.
        evidence: How well it is known; None where nothing is stated.

    Raises:
        ValueError: A value is out of its range or not finite; the message names it.
    """

    profile_id: str
    model: str
    hardware: str
    engine: str
    tpot_objective_ms: float
    a: float
    b: float
    d: float
    g: float
    provenance: str
    version: int
    form: CostForm = CostForm.ATTENTION
    ttft_objective_ms: float = 0.0
    image_s: float = 0.0
    image_cpu_s: float = 0.0
    create_time: str = ""
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        for name in ("profile_id", "model", "hardware", "engine", "provenance"):
            if not getattr(self, name):
                raise ValueError(f"profile {self.profile_id!r}: {name} must not be empty")
        if self.version < 1:
            raise ValueError(f"profile {self.profile_id!r}: version must be 1 or more, not {self.version}")
        if self.profile_id != f"{self.model}/{self.hardware}/{self.version}":
            raise ValueError(f"profile {self.profile_id!r}: the id must be model/hardware/version")
        self._check("tpot_objective_ms", _TPOT_OBJECTIVE_MAX_MS)
        self._check("a", _LINEAR_MAX_S)
        self._check("b", _LINEAR_MAX_S)
        self._check("d", _QUADRATIC_MAX_S)
        self._check("g", _QUADRATIC_MAX_S)
        if self.tpot_objective_ms == 0.0:
            raise ValueError(f"profile {self.profile_id!r}: tpot_objective_ms must be above 0")
        if self.a == 0.0 or self.b == 0.0:
            # Work that is free would never meet a quota.
            raise ValueError(f"profile {self.profile_id!r}: a and b must be above 0")

    def _check(self, name: str, maximum: float) -> None:
        value: float = getattr(self, name)
        if not math.isfinite(value) or not 0.0 <= value <= maximum:
            raise ValueError(f"profile {self.profile_id!r}: {name} must be 0 to {maximum:g}, not {value}")


def cost(profile: CostProfile, *, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> Cost:
    """Prices a request.

    Args:
        profile: The constants.
        input_tokens: Tokens of the rendered prompt, 0 to 10,000,000.
        output_tokens: Tokens generated or expected, 0 to 10,000,000.
        cached_input_tokens: The part of the prompt found in a prefix cache, 0 to `input_tokens`.

    Returns:
        Both parts, each rounded up to whole mMU. Never falls when any count but the cached one grows.

    Raises:
        ValueError: A count is out of its range.
    """
    if not 0 <= input_tokens <= TOKENS_MAX:
        raise ValueError(f"input_tokens must be 0 to {TOKENS_MAX}, not {input_tokens}")
    if not 0 <= output_tokens <= TOKENS_MAX:
        raise ValueError(f"output_tokens must be 0 to {TOKENS_MAX}, not {output_tokens}")
    if not 0 <= cached_input_tokens <= input_tokens:
        raise ValueError(f"cached_input_tokens must be 0 to input_tokens ({input_tokens}), not {cached_input_tokens}")
    uncached = input_tokens - cached_input_tokens
    # I^2 - H^2 as a product of whole numbers: exact, where the difference of two large floats is not.
    prefill_s = profile.a * uncached + profile.d * (uncached * (input_tokens + cached_input_tokens))
    decode_s = profile.b * output_tokens + profile.g * (output_tokens * (2 * input_tokens + output_tokens)) / 2
    return Cost(from_replica_seconds(prefill_s), from_replica_seconds(decode_s))
