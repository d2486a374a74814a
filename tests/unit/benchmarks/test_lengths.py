from __future__ import annotations

import pytest

from benchmarks.lengths import evaluate
from fairlead.replay import TraceRequest, read_trace
from model_units.profiles import built_in_profiles

H100 = built_in_profiles().get("llama-3.1-8b/h100/1")


def test_a_trace_of_one_length_is_estimated_once_it_is_known() -> None:
    """Proves the measure on a trace whose answer is known: only the beginning, before the first answer ends, is off."""
    requests = [TraceRequest(float(second), 500, 100) for second in range(1200)]
    report = evaluate(requests, H100)
    assert report["windows"] == 19
    assert report["max_tokens"] == 128
    # The first answers end after 3.5 s; until then each request is taken for 256 tokens.
    assert 0.0 < report["estimate_error"] < 0.02
    assert report["max_tokens_error"] == pytest.approx(report["max_tokens_bias"]) == pytest.approx(0.12, abs=0.05)
    assert report["input_only_bias"] < -0.2


def test_errors_of_opposite_sign_do_not_cancel() -> None:
    """Proves that a minute reserved too high does not make up for one reserved too low, while the bias shows that it
    would."""
    requests = [TraceRequest(second / 2, 100, 400 if (second // 120) % 2 else 100) for second in range(2400)]
    report = evaluate(requests, H100)
    assert report["estimate_error"] > 0.1
    assert abs(report["estimate_bias"]) < 0.5 * report["estimate_error"]


def test_the_shipped_excerpt_is_reserved_within_a_tenth() -> None:
    """Proves the bar on the excerpt that ships: the sum of a minute's estimates is at most 10 % off, where max_tokens
    and the input alone are more than 30 % off."""
    report = evaluate(read_trace().requests, H100)
    assert report["estimate_error"] <= 0.10
    assert report["max_tokens_error"] > 0.3
    assert report["input_only_error"] > 0.3
