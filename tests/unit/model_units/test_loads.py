"""Loads and measurements on the wire."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine.v1 import engine_pb2
from fairlead.errors import InvalidArgumentError
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.loads import load_from_proto, load_to_proto, measurement_from_proto, measurement_to_proto

RESULT = LoadResult(10.0, 12.0, 40, 4_000, 38.5, 8_000, 1.6e6, 9.1e5, 0.05, 0.09, cut_short=False)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=20),
    concurrency=st.integers(1, 10**6),
    window_ms=st.integers(1, 600_000),
    rest_ms=st.integers(0, 3_000_000),
    seed=st.integers(0, 2**64 - 1),
)
def test_loads_survive_the_wire(
    lengths: list[tuple[int, int]], concurrency: int, window_ms: int, rest_ms: int, seed: int
) -> None:
    """Proves that a load arrives as it was sent."""
    load = LoadSpec(tuple(lengths), concurrency, window_ms / 1e3, (window_ms + rest_ms) / 1e3, seed)
    assert load_from_proto(load_to_proto(load)) == load


def test_measurements_survive_the_wire() -> None:
    """Proves that a measurement arrives as it was made, and that every field of the message is one of it."""
    assert measurement_from_proto(measurement_to_proto(RESULT)) == RESULT
    assert set(asdict(RESULT)) == set(engine_pb2.Measurement.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_s", 0.0),
        ("window_s", float("nan")),
        ("window_s", -1.0),
        ("window_s", 13.0),
        ("engine_s", 0.0),
        ("engine_s", float("inf")),
        ("first_tokens", -1),
        ("output_tokens", -5),
        ("decoding_s", float("nan")),
        ("input_squares", -1.0),
        ("ttft_s_p95", float("inf")),
    ],
)
def test_what_cannot_be_true_is_refused(field: str, value: float) -> None:
    """Proves that a measurement that is not finite, negative or of no time is refused and its number named."""
    message = measurement_to_proto(RESULT)
    setattr(message, field, value)
    with pytest.raises(InvalidArgumentError, match="measurement") as raised:
        measurement_from_proto(message)
    assert field in raised.value.message or field == "window_s"


def test_a_load_cut_short_may_have_no_window() -> None:
    """Proves that a load that never warmed up is a measurement, not nonsense."""
    cut = replace(RESULT, window_s=0.0, first_tokens=0, output_tokens=0, decoding_s=0.0, cut_short=True)
    assert measurement_from_proto(measurement_to_proto(cut)) == cut
