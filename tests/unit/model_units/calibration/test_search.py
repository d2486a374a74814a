"""The search for the highest load that keeps an objective."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.calibration.load import LoadResult, LoadSpec
from model_units.calibration.search import Objective, Rates, Search
from tests.unit.model_units.calibration.replicas import LinearReplica, Replica, slower

READ, MADE = 500, 200


def search_on(
    replica: Replica, *, most: int = 256, guess: int = 20, idle: float = 0.16, objective: Objective | None = None
) -> tuple[Rates, list[int]]:
    """Carries out a search; returns the rates and the loads in the order they were tried."""
    search = Search(objective or Objective(50.0), most=most, guess=guess, idle_stress=idle)
    tried: list[int] = []
    while (concurrency := search.next()) is not None:
        assert 1 <= concurrency <= most
        assert concurrency not in tried
        assert search.next() == concurrency
        tried.append(concurrency)
        search.record(concurrency, replica(LoadSpec(((READ, MADE),), concurrency, 5.0, 90.0)))
    assert 1 <= len(tried) <= 6
    assert [probe.concurrency for probe in search.probes] == sorted(tried)
    return search.rates(), tried


def replica_of(highest: float, idle_share: float) -> LinearReplica:
    """One that keeps 50 ms with so many requests at a time, and takes a share of it when it is idle."""
    cost_s = MADE * 0.05 / highest
    return LinearReplica((0.0, cost_s / MADE, 0.0, 0.0), 50.0 * idle_share)


@given(st.floats(1.5, 2_000.0), st.floats(0.0, 0.8), st.integers(1, 3_000))
def test_finds_the_highest_rate(highest: float, idle_share: float, guess: int) -> None:
    """Proves that the rate at the objective is found within 3 % and six loads wherever the search begins, on replicas
    whose time per token grows with the load, and that no load is tried twice."""
    replica = replica_of(highest, idle_share)
    rates, _ = search_on(replica, most=4_000, guess=guess, idle=idle_share)
    assert rates.kept
    assert rates.requests == pytest.approx(1.0 / replica.cost_s(READ, MADE), rel=0.03)
    assert rates.input_tokens / rates.requests == pytest.approx(READ, rel=1e-3)
    assert rates.output_tokens / rates.requests == pytest.approx(MADE, rel=1e-3)
    assert rates.input_squares / rates.requests == pytest.approx(READ**2, rel=1e-3)
    assert rates.context_tokens / rates.requests == pytest.approx(MADE * (READ + MADE / 2), rel=1e-3)


@given(st.integers(1, 64), st.floats(1.5, 20.0), st.integers(1, 64))
def test_the_engine_may_be_full_before(most: int, times: float, guess: int) -> None:
    """Proves that where the engine takes no more, the rate is what it does then: nothing is added to it."""
    replica = replica_of(most * times, 0.1)
    rates, tried = search_on(replica, most=most, guess=guess, idle=0.1)
    full = replica(LoadSpec(((READ, MADE),), most, 5.0, 90.0))
    if most in tried:
        assert rates.requests == pytest.approx(full.first_tokens / full.window_s)
    else:  # a load was close to the objective already
        assert rates.requests == pytest.approx(1.0 / replica.cost_s(READ, MADE), rel=0.03)


def test_prefill_may_saturate_it_before() -> None:
    """Proves that a replica that does not get faster with more requests, nor slower per token, is at its rate."""

    def saturated(load: LoadSpec) -> LoadResult:
        result = LinearReplica(idle_ms=10.0)(replace(load, concurrency=min(load.concurrency, 8)))
        return slower(result, 20e-3 / result.tpot_s)

    rates, tried = search_on(saturated, guess=10, idle=0.2)
    at_rest = saturated(LoadSpec(((READ, MADE),), 8, 5.0, 90.0))
    assert max(tried) < 256
    assert rates.kept
    assert rates.requests == pytest.approx(at_rest.first_tokens / at_rest.window_s, rel=0.02)


@given(st.floats(0.01, 0.5), st.floats(0.0, 0.5), st.integers(1, 256))
def test_not_even_one_at_a_time(highest: float, idle_share: float, guess: int) -> None:
    """Proves that an objective that a single request misses by far is said to be missed, with what one comes to."""
    replica = replica_of(highest, idle_share)
    rates, tried = search_on(replica, guess=guess, idle=idle_share)
    assert 1 in tried
    assert not rates.kept
    one = replica(LoadSpec(((READ, MADE),), 1, 5.0, 90.0))
    assert rates.requests == pytest.approx(one.first_tokens / one.window_s)


@given(st.floats(4.0, 200.0), st.integers(1, 256))
def test_the_time_to_first_token_may_bind(highest: float, guess: int) -> None:
    """Proves that with an objective for the first token the load is brought to that one: its time grows with the
    number of requests here, so the highest rate is that of a known load."""
    replica = LinearReplica((0.0, 1e-5, 0.0, 0.0), 5.0)

    def waiting(load: LoadSpec) -> LoadResult:
        return replace(replica(load), ttft_s_p95=0.2 * load.concurrency / highest)

    rates, tried = search_on(waiting, guess=guess, idle=0.1, objective=Objective(50.0, 200.0))
    assert rates.kept

    def rate(concurrency: float) -> float:
        low = waiting(LoadSpec(((READ, MADE),), int(concurrency), 5.0, 90.0))
        high = waiting(LoadSpec(((READ, MADE),), int(concurrency) + 1, 5.0, 90.0))
        share = concurrency - int(concurrency)
        return (1 - share) * low.first_tokens / low.window_s + share * high.first_tokens / high.window_s

    assert rates.requests == pytest.approx(rate(min(256.0, highest)), rel=0.12)
    assert len(tried) <= 6


@given(
    st.lists(st.just(0.0) | st.floats(1e-4, 1.0), min_size=6, max_size=6),
    st.integers(1, 300),
    st.integers(1, 300),
    st.booleans(),
)
def test_noise_ends(times_s: list[float], most: int, guess: int, ttft: bool) -> None:
    """Proves that whatever is measured, a search stays within its bounds, repeats nothing, ends, and has finite
    rates: also where a load has no time per token, or no request that waited."""
    noise = iter(times_s)

    def noisy(load: LoadSpec) -> LoadResult:
        tpot_s = next(noise)
        result = slower(LinearReplica()(load), tpot_s) if tpot_s else LinearReplica()(load)
        return replace(result, decoding_s=tpot_s * (result.output_tokens - result.first_tokens), ttft_s_p95=tpot_s)

    rates, _ = search_on(noisy, most=most, guess=guess, idle=0.5, objective=Objective(50.0, 300.0 if ttft else 0.0))
    assert 0.0 < rates.requests < float("inf")


def test_answers_of_one_token_load_the_engine_fully() -> None:
    """Proves that single tokens, which have no time per token, are measured where the engine takes no more."""

    def single(load: LoadSpec) -> LoadResult:
        return replace(LinearReplica()(load), output_tokens=100, first_tokens=100, decoding_s=0.0)

    rates, tried = search_on(single, most=8, guess=3)
    assert rates.kept
    assert max(tried) <= 8


def test_stress_is_the_worse_latency() -> None:
    """Proves the measure of both objectives on worked numbers, and that no objective for the first token is none."""
    result = LoadResult(10.0, 12.0, 100, 1_100, 60.0, 1, 1.0, 1.0, 0.1, 0.9)
    assert result.tpot_s == pytest.approx(0.06)
    assert Objective(50.0).stress(result) == pytest.approx(1.2)
    assert Objective(50.0, 500.0).stress(result) == pytest.approx(1.8)
    assert Objective(50.0, 1_000.0).stress(result) == pytest.approx(1.2)
    assert not Objective(50.0, 500.0).tpot_binds(result)
    assert Objective(50.0, 1_000.0).tpot_binds(result)
