"""How the agent tells a slow engine from a busy one, from slow readers and from no work at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from engines.agent.core.decoding import DecodeMeter, Sequence, Sums
from engines.agent.core.drift import TOKENS_MIN, DriftWindow
from engines.agent.drift import DriftWatch
from engines.agent.notices import Notices
from engines.agent.record import ReplicaIdentity, ReplicaRecord
from engines.simulated.hardware import hardware
from engines.simulated.rehearsal import rehearse
from engines.simulated.step_machine import StepMachine
from engines.simulated.work import Work
from fairlead.admin.v1 import admin_pb2
from model_units.calibration.load import LoadSpec
from model_units.cost import CostForm, CostProfile, Evidence, cost
from model_units.latency import fit_latency_curve, healthy_tpot_ms
from model_units.profiles import built_in_profiles
from model_units.units import MilliModelUnitsPerMinute, to_replica_seconds
from model_units.wire import profile_to_proto
from tests.support.waiting import eventually

CURVE = ((1.0, 8.0), (10.0, 12.0), (50.0, 50.0))


def profile(version: int = 1, curve: tuple[tuple[float, float], ...] = CURVE, **changes: object) -> CostProfile:
    """The constants of an 8B model on an H100, with a curve."""
    fields: dict[str, object] = {
        "profile_id": f"m/h100/{version}",
        "model": "m",
        "hardware": "h100",
        "engine": "simulated",
        "tpot_objective_ms": 50.0,
        "a": 1.934e-5,
        "b": 2.764e-5,
        "d": 4.017e-10,
        "g": 4.532e-8,
        "provenance": "a test",
        "version": version,
        "evidence": Evidence(latency_curve=curve),
    }
    return CostProfile(**(fields | changes))  # type: ignore[arg-type]  # each test names fields that exist


class Metered:
    """A meter with one request after another going through it, in made-up time."""

    def __init__(self, prices: CostProfile | None = None) -> None:
        self.now_s = 100.0
        self.meter = DecodeMeter()
        self.meter.price_with(prices or profile(), self.now_s)

    def batch(self, sequence: Sequence, tokens: int, waited_s: float, reader_s: float = 0.0) -> None:
        """A reader takes its time, asks, waits and gets a batch."""
        self.now_s += reader_s
        asked_s = self.now_s
        self.meter.asked(asked_s)
        self.now_s += waited_s
        self.meter.answered(self.now_s)
        self.meter.batch(sequence, tokens, asked_s, self.now_s)

    def sums(self) -> Sums:
        return self.meter.take(self.now_s)


def test_time_between_tokens_counts_and_the_wait_for_the_first_does_not() -> None:
    """Proves what is added up of an undisturbed request: its gaps, the tokens they led to, the time with work."""
    metered, sequence = Metered(), Sequence(1_000)
    metered.batch(sequence, 1, 0.5)
    for _ in range(10):
        metered.batch(sequence, 1, 0.009, reader_s=0.001)
    sums = metered.sums()
    assert sums.tokens == 10
    assert sums.decoding_s == pytest.approx(0.1)
    assert sums.busy_s == pytest.approx(0.59)
    assert sums.window_s == pytest.approx(0.6)


def test_a_slow_reader_does_not_make_a_slow_engine() -> None:
    """Proves that what lay ready when its reader came is left out, and that counting goes on after it."""
    metered, sequence = Metered(), Sequence(100)
    metered.batch(sequence, 1, 0.1)
    metered.batch(sequence, 1, 0.010)
    metered.batch(sequence, 200, 0.0, reader_s=2.0)
    metered.batch(sequence, 1, 0.004)
    metered.batch(sequence, 1, 0.010)
    sums = metered.sums()
    assert sums.tokens == 2
    assert sums.decoding_s == pytest.approx(0.020)
    assert sums.busy_s == pytest.approx(0.124)


@given(
    input_tokens=st.integers(1, 20_000),
    guess=st.integers(1, 20_000),
    cached=st.integers(0, 20_000),
    batches=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    form=st.sampled_from(CostForm),
)
def test_work_of_a_request_is_its_price(
    input_tokens: int, guess: int, cached: int, batches: list[int], form: CostForm
) -> None:
    """Proves that token by token, whatever was guessed, a whole request adds up to what the cost function says."""
    prices = profile(form=form, d=0.0) if form is CostForm.PRODUCT else profile()
    metered, sequence = Metered(prices), Sequence(guess)
    for tokens in batches:
        metered.batch(sequence, tokens, 0.01)
    cached = min(cached, input_tokens)
    metered.meter.settle(sequence, input_tokens, cached)
    exact = cost(prices, input_tokens=input_tokens, output_tokens=sum(batches), cached_input_tokens=cached)
    rounding_s = to_replica_seconds(exact.total_milli_mu) - metered.sums().work_s
    assert -1e-9 <= rounding_s <= 2 * to_replica_seconds(type(exact.total_milli_mu)(1))


def test_other_prices_begin_a_new_account() -> None:
    """Proves that nothing of the old profile's prices is left, and that running requests go on being followed."""
    metered, sequence = Metered(), Sequence(1_000)
    metered.batch(sequence, 5, 0.1)
    metered.meter.price_with(profile(version=2, b=1.0, g=0.0), metered.now_s)
    metered.batch(sequence, 2, 0.1)
    assert metered.sums().work_s == pytest.approx(2.0)
    metered.meter.price_with(None, metered.now_s)
    metered.batch(sequence, 3, 0.1)
    assert metered.sums().work_s == 0.0
    assert sequence.produced == 10


WINDOWS = st.lists(
    st.builds(
        Sums,
        decoding_s=st.floats(0.01, 100.0),
        tokens=st.integers(20, 5_000),
        work_s=st.floats(0.01, 5.0),
        busy_s=st.floats(2.6, 5.0),
        window_s=st.just(5.0),
    ),
    min_size=1,
    max_size=30,
)


@given(WINDOWS, st.floats(0.2, 5.0))
def test_an_engine_slower_by_f_shows_f_times_the_ratio(windows: list[Sums], factor: float) -> None:
    """Proves that with as many sequences, everything taking f times as long multiplies the ratio by exactly f."""
    before, after = DriftWindow(CURVE), DriftWindow(CURVE)
    for number, each in enumerate(windows):
        before.add(each, 5.0 * number)
        slower = Sums(each.decoding_s * factor, each.tokens, each.work_s / factor, each.busy_s, each.window_s)
        after.add(slower, 5.0 * number)
    assert after.tokens == before.tokens
    assert after.ratio == pytest.approx(factor * before.ratio)


@given(st.lists(st.builds(Sums, st.floats(0, 9), st.integers(0, 60), st.floats(-1, 9), st.floats(0, 5), st.just(5.0))))
def test_nothing_is_said_on_thin_evidence(windows: list[Sums]) -> None:
    """Proves that idle, thin or starved windows never count, and that no ratio is stated before enough tokens."""
    watched = DriftWindow(CURVE, smoothing_s=1e9)
    counted = 0
    for number, each in enumerate(windows):
        watched.add(each, float(number))
        if each.tokens >= 20 and each.busy_s > 2.5 and each.work_s > 0 and each.decoding_s > 0:
            counted += each.tokens
        assert watched.tokens == counted
        assert (watched.ratio > 0) is (counted >= TOKENS_MIN)


def test_old_windows_are_forgotten() -> None:
    """Proves that the ratio follows the last busy minute, and that after ten without work nothing is known."""
    watched = DriftWindow(CURVE)
    healthy, slow = Sums(4.0, 500, 0.005, 5.0, 5.0), Sums(8.0, 500, 0.0025, 5.0, 5.0)
    for number in range(40):
        watched.add(healthy if number < 20 else slow, 5.0 * number)
    assert watched.ratio == pytest.approx(2.0)
    assert watched.tokens == 12 * 500
    watched.add(Sums(0.0, 0, 0.0, 0.0, 5.0), 200.0 + 601.0)
    assert (watched.ratio, watched.tokens) == (0.0, 0)


def test_without_a_curve_nothing_is_known() -> None:
    """Proves that a profile that was not measured is not judged."""
    watched = DriftWindow(())
    watched.add(Sums(4.0, 500, 0.005, 5.0, 5.0), 0.0)
    assert watched.ratio == 0.0


H100 = hardware("h100")


def measured_curve(lengths: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """The latency curve of a simulated H100 under loads of one pair of lengths."""
    points = []
    for concurrency in (1, 2, 4, 8, 16, 32, 64, 128):
        result = rehearse(H100, LoadSpec((lengths,), concurrency, 10.0, 120.0))
        price = cost(profile(), input_tokens=lengths[0], output_tokens=lengths[1])
        work_s = to_replica_seconds(price.total_milli_mu) / lengths[1] * result.output_tokens
        points.append((1_000 * result.tpot_s * work_s / result.window_s, 1_000 * result.tpot_s))
    return fit_latency_curve(points)[0]


def under_load(concurrency: int, lengths: tuple[int, int], slow_factor: float) -> Iterator[tuple[float, str, bool]]:
    """(when, whose, first) of every token of a simulated H100 under a steady load, for twenty seconds of its time."""
    machine = StepMachine(H100)
    machine.slow_factor = slow_factor
    for number in range(concurrency):
        # Staggered, as after a while: not all prompts at once.
        machine.add(Work(str(number), lengths[0], 1 + lengths[1] * (number + 1) // concurrency))
    next_number, now_s = concurrency, 0.0
    first: set[str] = set()
    while now_s < 20.0 and (step := machine.step()) is not None:
        now_s += step.duration_s
        for request_id in step.produced:
            yield now_s, request_id, request_id not in first
            first.add(request_id)
        for _ in step.finished:
            machine.add(Work(str(next_number), *lengths))
            next_number += 1


@pytest.mark.parametrize("slow_factor", [1.0, 1.6])
@pytest.mark.parametrize("concurrency", [3, 24, 96])
def test_the_ratio_is_the_slowness_whatever_the_load(concurrency: int, slow_factor: float) -> None:
    """Proves on the simulated engine that a healthy one shows about 1 and one slowed by 1.6 about 1.6, at any load."""
    lengths = (1_000, 200)
    curve = measured_curve(lengths)
    meter, watched = DecodeMeter(), DriftWindow(curve)
    meter.price_with(profile(curve=curve), 0.0)
    sequences: dict[str, Sequence] = {}
    window_ends_s = 5.0
    meter.asked(0.0)
    for now_s, name, first in under_load(concurrency, lengths, slow_factor):
        if now_s >= window_ends_s:
            watched.add(meter.take(now_s), now_s)
            window_ends_s += 5.0
        sequence = sequences.setdefault(name, Sequence(lengths[0]))
        assert (sequence.produced == 0) is first
        meter.batch(sequence, 1, now_s - 0.001, now_s)
    assert watched.ratio == pytest.approx(slow_factor, rel=0.06)


async def test_the_watch_follows_the_profile_in_force() -> None:
    """Proves what the record says: nothing without a curve, the ratio with one, and a new beginning with a new one."""
    store, clock = MemoryStore(), FakeClock()
    identity = ReplicaIdentity("m", "h100", "simulated", "", "", MilliModelUnitsPerMinute(100_000))
    record = ReplicaRecord(store, identity, clock=clock, changed=Notices())
    meter = DecodeMeter()
    watch = DriftWatch(
        store,
        model_id="m",
        hardware="h100",
        meter=meter,
        record=record,
        clock=clock,
        window_s=0.5,
        smoothing_s=60.0,
    )

    async def put_model(profile_id: str) -> None:
        engine = admin_pb2.EngineSpec(hardware="h100")
        model = admin_pb2.Model(model_id="m", engine=engine, profile_id=profile_id)
        await store.put(keys.model("m"), model.SerializeToString())

    def serve(tokens: int, gap_s: float) -> None:
        sequence = Sequence(10)
        for _ in range(tokens):
            now_s = clock.monotonic_ns() / 1e9
            meter.asked(now_s)
            clock.advance(gap_s)
            meter.answered(now_s + gap_s)
            meter.batch(sequence, 1, now_s, now_s + gap_s)

    for version in (1, 2):
        stored = profile(version, ((1.0, 8.0 * version),))
        await store.put(keys.profile(stored.profile_id), profile_to_proto(stored).SerializeToString())
    await store.put(keys.profile("m/h100/3"), b"\xff\xff no profile")
    await put_model("")
    running = asyncio.create_task(watch.run())
    try:
        serve(300, 0.016)
        watch.look()
        assert watch.ratio == 0.0
        for version, ratio in ((1, 2.0), (2, 1.0)):
            await put_model(f"m/h100/{version}")

            async def compared(version: int = version, ratio: float = ratio) -> bool:
                serve(300, 0.016)
                said = record.described
                right = said.drift_profile_id == f"m/h100/{version}" and said.drift_tokens >= TOKENS_MIN
                return right and said.drift_ratio == pytest.approx(ratio)

            await eventually(compared, 20.0, f"the ratio to version {version}")
        await put_model("m/h100/3")
        await eventually(lambda: watch.ratio == 0.0, 20.0, "nothing known of a profile that is not there")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


MIXES = {
    "chat": ((300, 250), (1_500, 300), (80, 100)),
    "retrieval": ((6_000, 200), (4_000, 150)),
    "code": ((2_500, 30), (1_500, 50)),
    "long answers": ((200, 1_500),),
    "short": ((50, 20), (100, 40)),
}


@pytest.mark.parametrize("label", ["h100", "a100", "h100-tp4"])
def test_one_curve_serves_every_mix(label: str) -> None:
    """Proves that a curve measured on a grid of equal lengths leaves healthy replicas near 1 under other mixes."""
    replica, prices = hardware(label), built_in_profiles().default_for(label)

    def seen(lengths: tuple[tuple[int, int], ...], concurrency: int) -> tuple[float, float]:
        result = rehearse(replica, LoadSpec(lengths, concurrency, 15.0, 300.0))
        work_s = prices.a * result.input_tokens + prices.d * result.input_squares
        work_s += prices.b * result.output_tokens + prices.g * result.context_tokens
        return 1_000 * result.tpot_s * work_s / result.window_s, 1_000 * result.tpot_s

    lengths = [(read, made) for read in (128, 1_000, 4_000) for made in (32, 200, 600)]
    grid = [seen((each,), concurrency) for each in lengths for concurrency in (1, 4, 12, 32, 96)]
    curve, spread = fit_latency_curve([each for each in grid if each[1] < 1.3 * prices.tpot_objective_ms])
    assert spread < 0.08
    for name, mix in MIXES.items():
        for concurrency in (1, 4, 16, 64):
            load_ms, tpot_ms = seen(mix, concurrency)
            if tpot_ms < 1.3 * prices.tpot_objective_ms:
                assert tpot_ms / healthy_tpot_ms(curve, load_ms) == pytest.approx(1.0, abs=0.12), (name, concurrency)
