"""Loads in virtual time: the accounts against a replica that computes every token, and what a load can be asked."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.simulated import host
from engines.simulated.closed_loop import ClosedLoop
from engines.simulated.hardware import HARDWARE, Hardware
from engines.simulated.rehearsal import rehearse
from engines.simulated.work import SchedulerLimits, Work
from model_units.calibration.load import LoadResult, LoadSpec
from tests.support.naive_replica import NaiveReplica

H100 = HARDWARE["h100"]


def small(kv_capacity_tokens: int) -> Hardware:
    """A machine whose steps take 2 ms, 0.1 ms per token and a little per token of context."""
    return Hardware("small", "toy", 0, 0, 0, 0.1, 0.1, 1e-3, 0, 2.0, kv_capacity_tokens)


def replayed(hardware: Hardware, load: LoadSpec, limits: SchedulerLimits) -> LoadResult:
    """What `rehearse` promises, token by token on the naive replica: every token is reported when it is seen."""
    replica = NaiveReplica(hardware, limits)
    loop = ClosedLoop(load, 0.0)
    arrivals = [(host.INGEST_S, number, number, *pair) for number, pair in enumerate(loop.begin())]
    stream_of: dict[str, int] = {}
    produced: dict[str, int] = {}
    now_s, count = 0.0, len(arrivals)
    while True:
        while arrivals and arrivals[0][0] <= now_s:
            _, number, stream, read, made = heapq.heappop(arrivals)
            stream_of[str(number)] = stream
            produced[str(number)] = 0
            replica.add(Work(str(number), read, made))
        step = replica.step()
        if step is None:
            now_s = min(load.time_max_s, arrivals[0][0])
        else:
            now_s += step.duration_s
            seen_s = now_s + host.TOKEN_S
            for name in step.produced:
                produced[name] += 1
                if produced[name] > 1:
                    loop.progress(stream_of[name], produced[name])
            for name in step.produced:
                if produced[name] == 1:
                    loop.first_token(stream_of[name], seen_s)
            for name in step.finished:
                read, made = loop.ended(stream_of[name], seen_s + host.FINISH_S)
                count += 1
                again_s = seen_s + host.FINISH_S + host.INGEST_S
                heapq.heappush(arrivals, (again_s, count, stream_of[name], read, made))
        if now_s >= load.time_max_s and not loop.done:
            loop.stop(now_s)
        if loop.done:
            return loop.result(now_s)


def numbers(result: LoadResult) -> dict[str, float]:
    """Its fields, without the end of the experiment: a driver may compute a step more before it looks."""
    return {name: getattr(result, name) for name in LoadResult.__slots__ if name != "engine_s"}


loads = st.builds(
    LoadSpec,
    lengths=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 60)), min_size=1, max_size=4).map(tuple),
    concurrency=st.integers(1, 12),
    window_s=st.floats(0.05, 0.8),
    time_max_s=st.floats(0.5, 3.0),
    seed=st.integers(1, 1_000),
)


@settings(max_examples=30, deadline=None)
@given(loads, st.integers(12, 100), st.integers(1, 8))
def test_accounts_are_those_of_every_token(load: LoadSpec, blocks: int, sequences: int) -> None:
    """Proves that fast-forwarding through virtual time counts what a replica does that computes token by token, with a
    KV cache so small that requests are thrown out of it and begin again."""
    limits = SchedulerLimits(sequences_max=sequences, step_tokens_max=64, piece_tokens=16)
    hardware = small(16 * blocks)
    fast, slow = rehearse(hardware, load, limits), replayed(hardware, load, limits)
    assert numbers(fast) == pytest.approx(numbers(slow), rel=1e-9, abs=1e-9)
    assert fast.engine_s == pytest.approx(slow.engine_s, abs=0.05)


def test_the_same_load_measures_the_same() -> None:
    """Proves that a rehearsal depends on nothing but its arguments, the seed of a mix among them."""
    load = LoadSpec(((200, 30), (900, 10), (50, 80)), 12, 3.0, 60.0, 5)
    assert rehearse(H100, load) == rehearse(H100, load)
    assert rehearse(H100, replace(load, seed=6)) != rehearse(H100, load)


@pytest.mark.parametrize("factor", [0.5, 1.6, 4.0])
def test_a_slow_replica_takes_as_much_longer(factor: float) -> None:
    """Proves that every step of a slow replica takes longer by its factor, and so does every token."""
    load = LoadSpec(((600, 200),), 32, 5.0, 200.0)
    usual, slow = rehearse(H100, load), rehearse(H100, load, slow_factor=factor)
    assert slow.tpot_s == pytest.approx(factor * usual.tpot_s, rel=0.03)


def test_one_at_a_time_takes_what_the_steps_take() -> None:
    """Proves the times of an idle replica on the step-time formula: 600 tokens read, 50 made, one request at a time."""
    result = rehearse(H100, LoadSpec(((600, 50),), 1, 5.0, 60.0))
    read_s = H100.step_s(prefill_tokens=600, prefill_squares=600**2, sequences=0, context_tokens=0)
    assert result.ttft_s_p50 == pytest.approx(host.INGEST_S + read_s + host.TOKEN_S, rel=1e-6)
    made_s = H100.decode_s(1, 600, 49)
    assert result.tpot_s == pytest.approx((made_s + host.FINISH_S) / 49, rel=1e-3)


def test_a_request_larger_than_the_cache_is_refused() -> None:
    """Proves that lengths which can never run are an error and not a load without end."""
    with pytest.raises(ValueError, match="larger than the KV cache"):
        rehearse(small(160), LoadSpec(((100, 80),), 1, 1.0, 10.0))


@pytest.mark.parametrize(
    ("lengths", "concurrency"), [((50_000, 10), 1), ((20_000, 5_000), 4), ((30, 1), 3), ((200, 100_000), 2)]
)
def test_a_load_ends_at_its_limit(lengths: tuple[int, int], concurrency: int) -> None:
    """Proves that a load ends within a step of its limit, even where nothing is produced until then."""
    result = rehearse(H100, LoadSpec((lengths,), concurrency, 1e6, 1.5))
    assert result.cut_short
    assert 1.5 <= result.engine_s < 1.5 + 0.3
    assert result.usable == (lengths == (30, 1))


def test_a_limit_between_a_token_and_its_being_seen_is_measured() -> None:
    """Proves that a load whose limit falls between the step that opens the window and the moment its token is seen
    measures next to nothing, and does not fail."""
    load = LoadSpec(((100, 1),), 1, 1.0, 30.0)
    read_s = H100.step_s(prefill_tokens=100, prefill_squares=100**2, sequences=0, context_tokens=0)
    once_s = host.INGEST_S + read_s + host.TOKEN_S
    opens_s = once_s + host.FINISH_S + once_s  # the warm-up is the first request; it settles within the second
    cut = rehearse(H100, replace(load, time_max_s=opens_s - host.TOKEN_S / 2))
    assert cut.cut_short
    assert not cut.usable
    assert cut.window_s < host.FINISH_S + host.TOKEN_S


def test_answers_of_one_token_have_no_time_per_token() -> None:
    """Proves that a load of single tokens is measured without one: every token is a first one."""
    result = rehearse(H100, LoadSpec(((500, 1),), 4, 1.0, 30.0))
    assert result.first_tokens == result.output_tokens > 0
    assert result.tpot_s == 0.0
    assert math.isfinite(result.decoding_mean)
