"""Loads and measurements of a calibration <-> their wire messages, every field checked."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Final

from fairlead.engine.v1 import engine_pb2
from fairlead.errors import InvalidArgumentError
from model_units.calibration.load import LENGTHS_MAX, LoadResult, LoadSpec

TIME_MAX_S: Final = 3_600.0
"""Longest load, seconds."""

_NS_PER_S: Final = 1_000_000_000
_TOKENS_MAX: Final = 10_000_000


def load_to_proto(load: LoadSpec) -> engine_pb2.Load:
    """A load as it is sent to a replica."""
    message = engine_pb2.Load(
        lengths=[engine_pb2.Lengths(input_tokens=inputs, output_tokens=outputs) for inputs, outputs in load.lengths],
        concurrency=load.concurrency,
        seed=load.seed,
    )
    message.window.FromNanoseconds(round(load.window_s * _NS_PER_S))
    message.time_max.FromNanoseconds(round(load.time_max_s * _NS_PER_S))
    return message


def load_from_proto(load: engine_pb2.Load) -> LoadSpec:
    """A load as it was asked for.

    Raises:
        InvalidArgumentError: A field is missing or out of range; it is named.
    """
    if not 1 <= len(load.lengths) <= LENGTHS_MAX:
        raise _wrong("lengths", f"has {len(load.lengths)} entries; 1 to {LENGTHS_MAX} are allowed")
    lengths = tuple((entry.input_tokens, entry.output_tokens) for entry in load.lengths)
    if not all(1 <= tokens <= _TOKENS_MAX for pair in lengths for tokens in pair):
        raise _wrong("lengths", f"must hold prompts and answers of 1 to {_TOKENS_MAX:,} tokens")
    if load.concurrency < 1:
        raise _wrong("concurrency", f"{load.concurrency} must be 1 or more")
    window_s = load.window.ToNanoseconds() / _NS_PER_S
    time_max_s = load.time_max.ToNanoseconds() / _NS_PER_S
    if not 0.0 < time_max_s <= TIME_MAX_S:
        raise _wrong("time_max", f"{time_max_s:g} s must be above 0 up to {TIME_MAX_S:g} s")
    if not 0.0 < window_s <= time_max_s:
        raise _wrong("window", f"{window_s:g} s must be above 0 up to time_max, {time_max_s:g} s")
    return LoadSpec(lengths, load.concurrency, window_s, time_max_s, load.seed)


def measurement_to_proto(result: LoadResult) -> engine_pb2.Measurement:
    """A measurement as a replica sends it."""
    return engine_pb2.Measurement(**asdict(result))


def measurement_from_proto(message: engine_pb2.Measurement) -> LoadResult:
    """A measurement as it was reported.

    Raises:
        InvalidArgumentError: It cannot be true: a number is not finite or negative, or nothing was measured in no time.
    """
    try:
        result = LoadResult(**{field.name: getattr(message, field.name) for field in fields(LoadResult)})
    except ValueError as error:
        raise InvalidArgumentError(str(error), field="measurement") from error
    if message.window_s <= 0 and not message.cut_short:
        raise InvalidArgumentError("measurement.window_s is 0: nothing was measured", field="measurement.window_s")
    if message.engine_s <= 0 or message.engine_s < message.window_s * 0.999:
        raise InvalidArgumentError(
            f"measurement.engine_s is {message.engine_s:g} s for a window of {message.window_s:g} s",
            field="measurement.engine_s",
        )
    return result


def _wrong(field: str, text: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"load.{field}: {text}", field=f"load.{field}")
