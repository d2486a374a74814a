"""The truth that profiles are judged by, against replicas whose capacity can be read off."""

from __future__ import annotations

import pytest

from benchmarks.capacity import sustained_requests_per_s
from engines.simulated.hardware import HARDWARE, Hardware
from engines.simulated.rehearsal import rehearse
from engines.simulated.work import SchedulerLimits
from model_units.calibration.load import LoadSpec

LIMITS = SchedulerLimits()
H100 = HARDWARE["h100"]
# A step takes 10 ms and 1 ms per token: 40 sequences decode at 50 ms.
PLAIN = Hardware("plain", "toy", 0, 0, 0, 1.0, 0, 0, 0, 10.0, 400_000)


def test_the_objective_binds() -> None:
    """Proves the capacity of a plain machine: a step of 50 ms has room for 40 tokens, so 800 a second in all, prompts
    of one token among them."""
    found = sustained_requests_per_s(PLAIN, [(1, 400)], tpot_objective_ms=50.0, limits=LIMITS)
    assert found == pytest.approx(800 / 400, rel=0.03)


def test_the_slots_bind() -> None:
    """Proves that with eight slots the replica does what eight requests at a time do: 8 tokens in 18 ms."""
    limits = SchedulerLimits(sequences_max=8)
    found = sustained_requests_per_s(PLAIN, [(1, 400)], tpot_objective_ms=50.0, limits=limits)
    assert found == pytest.approx(8 / 0.018 / 400, rel=0.03)


def test_the_cache_binds() -> None:
    """Proves that nine tenths of the KV cache are used: 9,000 of 10,000 tokens hold 9 requests of 1,000."""
    small = Hardware("small", "toy", 0, 0, 0, 1.0, 0, 0, 0, 10.0, 10_000)
    found = sustained_requests_per_s(small, [(1, 999)], tpot_objective_ms=50.0, limits=LIMITS)
    assert found == pytest.approx(9 / 0.019 / 999, rel=0.03)


def test_an_objective_that_nobody_keeps() -> None:
    """Proves that where not even one request keeps the objective, it takes the whole replica: 11 ms a token."""
    found = sustained_requests_per_s(PLAIN, [(1, 400)], tpot_objective_ms=5.0, limits=LIMITS)
    assert found == pytest.approx(1 / 0.011 / 400, rel=0.03)


@pytest.mark.parametrize("lengths", [(3_500, 300), (4_000, 100)])
def test_the_capacity_is_at_the_objective(lengths: tuple[int, int]) -> None:
    """Proves that the rate found lies between those of two long loads on either side of the objective."""
    found = sustained_requests_per_s(H100, [lengths], tpot_objective_ms=50.0, limits=LIMITS)
    rates, tpots_ms = [], []
    for share in (0.9, 1.1):
        concurrency = round(share * found * (0.05 * lengths[1] + 0.05))
        result = rehearse(H100, LoadSpec((lengths,), concurrency, 60.0, 900.0, 3))
        rates.append(result.output_tokens / lengths[1] / result.window_s)
        tpots_ms.append(1e3 * result.tpot_s)
    assert tpots_ms[0] < 50.0 < tpots_ms[1]
    assert 0.97 * rates[0] < found < 1.03 * rates[1]


def test_a_mix_costs_what_its_parts_do() -> None:
    """Proves that the capacity of a mix is between those of its parts, near the one that their costs add up to."""
    pairs = [(500, 300), (3_000, 100)]
    rates = [sustained_requests_per_s(H100, [pair], tpot_objective_ms=50.0, limits=LIMITS) for pair in pairs]
    mixed = sustained_requests_per_s(H100, pairs, tpot_objective_ms=50.0, limits=LIMITS)
    assert mixed == pytest.approx(2 / sum(1 / rate for rate in rates), rel=0.08)


def test_answers_of_one_token() -> None:
    """Proves that requests without a second token, which have no time per token, are limited by prefill alone."""
    found = sustained_requests_per_s(H100, [(2_048, 1)], tpot_objective_ms=50.0, limits=LIMITS)
    step_s = H100.step_s(prefill_tokens=2_048, prefill_squares=2_048**2, sequences=0, context_tokens=0)
    assert found == pytest.approx(1 / step_s, rel=0.05)


def test_requests_too_long_to_measure_are_refused() -> None:
    """Proves that requests of which not one is read in twenty windows are an error and not a division by nothing."""
    slow = Hardware("slow", "toy", 0, 0, 0, 1_000.0, 0, 0, 0, 10.0, 400_000)
    with pytest.raises(ValueError, match="1 at a time fill no window of 20 s: the requests are too long"):
        sustained_requests_per_s(slow, [(2_000, 1)], tpot_objective_ms=50.0, limits=LIMITS)
