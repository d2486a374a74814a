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
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from math import ceil
from types import MappingProxyType
from typing import Final, NamedTuple

from model_units.units import MILLI_PER_REPLICA_SECOND, ROUNDING_NOISE, MilliModelUnits

TOKENS_MAX: Final = 10_000_000
"""Longest prompt or output that is priced; the most a model's context may be set to."""

IMAGES_MAX: Final = 100_000
"""Most images of one request that are priced."""

# Beyond these a number is a typing error, not a measurement.
LINEAR_MAX_S: Final = 10.0
"""Most replica-seconds that one token costs."""
_QUADRATIC_MAX_S: Final = 1e-2
_IMAGE_CPU_MAX_S: Final = 100.0
_TPOT_OBJECTIVE_MAX_MS: Final = 60_000.0
_TTFT_OBJECTIVE_MAX_MS: Final = 3_600_000.0
_ENGINE_MAX_S: Final = 1e9
ERROR_MAX: Final = 100.0
"""Largest error that is stated: beyond a hundredfold it says nothing more."""
_COUNT_MAX: Final = 2**31 - 1  # a version and a number of points are int32 on the wire
_TEXT_CHARACTERS_MAX: Final = 10_000
_CURVE_POINTS_MAX: Final = 1_000
_CLASSES_MAX: Final = 1_000
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)


class Cost(NamedTuple):
    """A price, split by what it loads. A tuple, because every request makes several.

    Attributes:
        prefill_milli_mu: Reading the prompt, mMU, 0 or more.
        decode_milli_mu: Producing the output, mMU, 0 or more.
        total_milli_mu: Both parts: what quota, billing and autoscaling count.
    """

    prefill_milli_mu: MilliModelUnits
    decode_milli_mu: MilliModelUnits
    total_milli_mu: MilliModelUnits


class CostForm(enum.Enum):
    """Which terms the cost function has."""

    ATTENTION = "attention"
    """a*I + d*I^2 for prefill, b*O + g*O*(I + O/2) for decode."""
    PRODUCT = "product"
    """a*I for prefill, b*O + g*I*O for decode; d is 0."""


COEFFICIENTS: Final = ("a", "b", "d", "g")
"""Names of the coefficients, in the order of every vector of them."""


@dataclass(frozen=True)
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

    Raises:
        ValueError: A value is out of its range or contradicts itself; the message names it.
    """

    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    hold_out_error: float = 0.0
    class_errors: Mapping[str, float] = field(default_factory=dict, hash=False)
    points: int = 0
    engine_s: float = 0.0
    latency_curve: tuple[tuple[float, float], ...] = ()
    latency_spread: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in self.intervals.items():
            if name not in COEFFICIENTS:
                raise ValueError(f"evidence: intervals must be of {', '.join(COEFFICIENTS)}, not of {name!r}")
            _check_range(f"evidence: intervals[{name}] low", low, 0.0, LINEAR_MAX_S)
            _check_range(f"evidence: intervals[{name}] high", high, low, LINEAR_MAX_S)
        if len(self.class_errors) > _CLASSES_MAX:
            raise ValueError(f"evidence: class_errors must be at most {_CLASSES_MAX}, not {len(self.class_errors)}")
        for name, error in self.class_errors.items():
            _check_text("evidence: the name of a traffic class in class_errors", name)
            _check_range(f"evidence: class_errors[{name}]", error, -ERROR_MAX, ERROR_MAX)
        _check_range("evidence: hold_out_error", self.hold_out_error, 0.0, ERROR_MAX)
        _check_range("evidence: points", self.points, 0, _COUNT_MAX)
        _check_range("evidence: engine_s", self.engine_s, 0.0, _ENGINE_MAX_S)
        _check_range("evidence: latency_spread", self.latency_spread, 0.0, ERROR_MAX)
        self._check_curve()

    def _check_curve(self) -> None:
        if len(self.latency_curve) > _CURVE_POINTS_MAX:
            raise ValueError(f"evidence: latency_curve must have at most {_CURVE_POINTS_MAX} points")
        for intensity_ms, tpot_ms in self.latency_curve:
            _check_range("evidence: latency_curve intensity", intensity_ms, 0.0, _ENGINE_MAX_S)
            _check_range("evidence: latency_curve TPOT", tpot_ms, 0.0, _ENGINE_MAX_S)
            if tpot_ms == 0.0:
                raise ValueError("evidence: latency_curve TPOT must be above 0")
        for (intensity, tpot), (next_intensity, next_tpot) in pairwise(self.latency_curve):
            if not (intensity < next_intensity and tpot <= next_tpot):
                raise ValueError(
                    "evidence: latency_curve must ascend: intensities each above the one before, TPOTs never below;"
                    f" ({next_intensity:g}, {next_tpot:g}) follows ({intensity:g}, {tpot:g})"
                )

    @property
    def stated_error(self) -> float:
        """The worst the profile admits to: of the hold-out error and every traffic class's."""
        return max([self.hold_out_error, *(abs(error) for error in self.class_errors.values())])


@dataclass(frozen=True)
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
        d: Replica-seconds per input token squared, 0 to 0.01; 0 in the form PRODUCT.
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
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"profile {self.profile_id!r}: {error}") from error

    def _check(self) -> None:
        for name in ("profile_id", "model", "hardware", "engine", "provenance"):
            _check_text(name, getattr(self, name))
        _check_range("version", self.version, 1, _COUNT_MAX)
        if "/" in self.model or "/" in self.hardware:
            raise ValueError("model and hardware must not hold a slash")
        if self.profile_id != f"{self.model}/{self.hardware}/{self.version}":
            raise ValueError(f"profile_id must be model/hardware/version: {self.model}/{self.hardware}/{self.version}")
        for name, maximum in _MAXIMA.items():
            _check_range(name, getattr(self, name), 0.0, maximum)
        if self.tpot_objective_ms == 0.0:
            raise ValueError("tpot_objective_ms must be above 0")
        if self.a == 0.0 or self.b == 0.0:
            # Work that is free would never meet a quota.
            raise ValueError("a and b must be above 0")
        if self.form is CostForm.PRODUCT and self.d != 0.0:
            raise ValueError(f"d must be 0 in the form 'product', which has no such term, not {self.d}")
        if self.create_time:
            _check_time("create_time", self.create_time)


_MAXIMA: Final = MappingProxyType(
    {
        "tpot_objective_ms": _TPOT_OBJECTIVE_MAX_MS,
        "a": LINEAR_MAX_S,
        "b": LINEAR_MAX_S,
        "d": _QUADRATIC_MAX_S,
        "g": _QUADRATIC_MAX_S,
        "ttft_objective_ms": _TTFT_OBJECTIVE_MAX_MS,
        "image_s": LINEAR_MAX_S,
        "image_cpu_s": _IMAGE_CPU_MAX_S,
    }
)


def _check_range(name: str, value: float, minimum: float, maximum: float) -> None:
    # NaN compares false with everything, so it is refused here too.
    if not minimum <= value <= maximum:
        raise ValueError(f"{name} must be {minimum:g} to {maximum:g}, not {value}")


def _check_text(name: str, value: str) -> None:
    if not value:
        raise ValueError(f"{name} must not be empty")
    if len(value) > _TEXT_CHARACTERS_MAX or not value.isprintable():
        raise ValueError(f"{name} must be at most {_TEXT_CHARACTERS_MAX} printable characters")


def _check_time(name: str, value: str) -> None:
    problem = f"{name} must be a time in UTC such as 2026-01-31T08:30:00Z, not {value!r}"
    if not _TIME.fullmatch(value):
        raise ValueError(problem)
    try:
        datetime.fromisoformat(value[:19])
    except ValueError as error:
        raise ValueError(problem) from error


def cost(
    profile: CostProfile, *, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0, images: int = 0
) -> Cost:
    """Prices a request.

    Args:
        profile: The constants.
        input_tokens: Tokens of the rendered prompt, those of its images included, 0 to 10,000,000.
        output_tokens: Tokens generated or expected, 0 to 10,000,000.
        cached_input_tokens: The part of the prompt found in a prefix cache, 0 to `input_tokens`.
        images: Images in the prompt, 0 to 100,000; each is encoded whether its tokens were cached or not.

    Returns:
        Both parts, each rounded up to whole mMU. Never falls when any count but the cached one grows.

    Raises:
        ValueError: A count is out of its range.
    """
    if not (
        0 <= cached_input_tokens <= input_tokens <= TOKENS_MAX
        and 0 <= output_tokens <= TOKENS_MAX
        and 0 <= images <= IMAGES_MAX
    ):
        raise _refusal(input_tokens, output_tokens, cached_input_tokens, images)
    return cost_in_range(profile, input_tokens, output_tokens, cached_input_tokens, images)


def cost_in_range(
    profile: CostProfile, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0, images: int = 0
) -> Cost:
    """Prices a request whose counts are known to be in their ranges; arguments and result as in `cost`."""
    uncached = input_tokens - cached_input_tokens
    # I^2 - H^2 as a product of whole numbers: exact, where the difference of two large floats is not.
    prefill_s = profile.a * uncached + profile.d * (uncached * (input_tokens + cached_input_tokens))
    if images:
        prefill_s += profile.image_s * images
    contexts = 2 * input_tokens if profile.form is _PRODUCT else 2 * input_tokens + output_tokens
    decode_s = profile.b * output_tokens + profile.g * (output_tokens * contexts) / 2
    # `units.from_replica_seconds` twice, in place, and the tuple without its own constructor: each is half the whole.
    prefill = ceil(prefill_s * _MILLI_PER_S - ROUNDING_NOISE)
    decode = ceil(decode_s * _MILLI_PER_S - ROUNDING_NOISE)
    return _new_tuple(Cost, (prefill, decode, prefill + decode))


def decode_shape(profile: CostProfile, input_tokens: int) -> tuple[float, float]:
    """How the price of an answer grows with its length, after this prompt.

    Args:
        profile: The constants.
        input_tokens: Tokens of the prompt, 0 or more.

    Returns:
        (linear, square): an answer of O tokens takes b * (linear * O + square * O^2) replica-seconds. The first is 1 or
        more, the second 0 or more.
    """
    ratio = profile.g / profile.b
    if ratio > _SHAPE_MAX:
        ratio = _SHAPE_MAX
    return (1.0 + ratio * input_tokens, 0.0 if profile.form is _PRODUCT else ratio / 2)


def image_cpu_seconds(profile: CostProfile, images: int) -> float:
    """CPU time for decoding and resizing a request's images: a resource of its own, not part of the price.

    Args:
        profile: The constants.
        images: Images in the prompt, 0 to 100,000.

    Returns:
        CPU-seconds, 0 or more.

    Raises:
        ValueError: `images` is out of its range.
    """
    _check_range("images", images, 0, IMAGES_MAX)
    return profile.image_cpu_s * images


_SHAPE_MAX: Final = 1e9  # keeps the shape finite where a profile says that a decode step itself costs next to nothing
_new_tuple: Final = tuple.__new__
_MILLI_PER_S: Final = MILLI_PER_REPLICA_SECOND  # compiled, another module's is looked up unless it is a literal
_PRODUCT: Final = CostForm.PRODUCT  # a global is found faster than a member of an enum, and prices are on the hot path


def _refusal(input_tokens: int, output_tokens: int, cached_input_tokens: int, images: int) -> ValueError:
    """Names the count that is out of its range; apart, so that a good request pays for one comparison chain only."""
    if not 0 <= input_tokens <= TOKENS_MAX:
        return ValueError(f"input_tokens must be 0 to {TOKENS_MAX}, not {input_tokens}")
    if not 0 <= output_tokens <= TOKENS_MAX:
        return ValueError(f"output_tokens must be 0 to {TOKENS_MAX}, not {output_tokens}")
    if not 0 <= images <= IMAGES_MAX:
        return ValueError(f"images must be 0 to {IMAGES_MAX}, not {images}")
    return ValueError(f"cached_input_tokens must be 0 to input_tokens ({input_tokens}), not {cached_input_tokens}")
