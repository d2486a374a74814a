"""One recorded minute in real time behind the agent, and in virtual time in the fleet of `simulation`.

What is compared is what a client sees: when it asked, when the first token came, when the answer ended.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from common.clock import Clock, SystemClock
from engines.agent.dispatcher import Dispatcher
from engines.agent.job import Job
from engines.agent.notices import Notices
from engines.engine import EngineRequest, Prompt, Sampling
from engines.simulated.engine import BYTES_PER_TOKEN, PIECE_TOKENS, SimulatedEngine
from engines.simulated.hardware import hardware
from engines.simulated.work import SchedulerLimits
from fairlead.replay.traces import TraceRequest, read_trace
from model_units.cost import cost
from model_units.profiles import built_in_profiles
from model_units.units import REPLICA_CAPACITY
from simulation.arrivals import Workloads
from simulation.fleet import Simulation
from simulation.scenario import ModelSpec, Settings, TenantSpec, make_scenario
from simulation.traces import SimRequest, Workload
from tests.support.virtual_loop import LoopClock, run_virtually

# Llama 3.1 70B on four H100: its steps are long beside what an event loop is late by, and the recorded rate loads it by
# half. No request is made slower or faster than it was recorded.
REPLICA = hardware("h100-tp4")
LIMITS = SchedulerLimits(piece_tokens=PIECE_TOKENS)
TOLERANCE = 0.05
ANSWER_MAX_TOKENS = 400
PROBE_S = 0.01
MADE_UP_S = 0.5
"""The engine makes up for what it is late by so much, and no more."""
QUIET_S = 0.005
"""A machine whose wake-ups are this late at most (p95) has nothing to do with what a client sees."""
RUNS_MAX = 3
PROFILE = built_in_profiles().default_for(REPLICA.label)


@dataclass(frozen=True)
class Served:
    """What the client of one request saw: when it asked, the first token, the end, and how long the answer was."""

    arrival_s: float
    first_s: float
    end_s: float
    output_tokens: int


@dataclass(frozen=True)
class Latencies:
    """Times to first token and per output token of all requests, seconds, in any order."""

    ttft_s: Sequence[float]
    tpot_s: Sequence[float]

    @classmethod
    def seen(cls, served: Sequence[Served]) -> Latencies:
        return cls(
            [each.first_s - each.arrival_s for each in served],
            [(each.end_s - each.first_s) / (each.output_tokens - 1) for each in served if each.output_tokens > 1],
        )


def recorded(duration_s: float, keep_every: int) -> list[TraceRequest]:
    """Requests of the recording that ships, some left out so that the load is right; their times stay."""
    requests = read_trace(duration_s=duration_s).requests[::keep_every]
    return [replace(each, output_tokens=min(each.output_tokens, ANSWER_MAX_TOKENS)) for each in requests]


def load_of(requests: Sequence[TraceRequest], duration_s: float) -> float:
    """Share of the replica's capacity that these requests take."""
    milli_mu = sum(
        cost(PROFILE, input_tokens=each.input_tokens, output_tokens=each.output_tokens).total_milli_mu
        for each in requests
    )
    return milli_mu / (REPLICA_CAPACITY * duration_s / 60)


async def serve(requests: Sequence[TraceRequest], clock: Clock) -> list[Served]:
    """Sends the requests at their times to a simulated engine behind a real dispatcher."""
    loop = asyncio.get_running_loop()
    engine = SimulatedEngine(REPLICA, LIMITS)
    dispatcher = Dispatcher(
        engine, model_id="m", queued_max=512, capacity=REPLICA_CAPACITY, clock=clock, changed=Notices(),
        engine_failed=lambda: pytest.fail("the engine failed"),
    )  # fmt: skip
    dispatcher.resize(await engine.start())
    dispatcher.open()
    begin_s = loop.time()

    async def client(number: int, what: TraceRequest) -> Served:
        await asyncio.sleep(begin_s + what.arrival_s - loop.time())
        words = itertools.cycle(f"{number:8}")
        prompt = Prompt("".join(itertools.islice(words, what.input_tokens * BYTES_PER_TOKEN)))
        sampling = Sampling(what.output_tokens, ignore_end_token=True)
        arrival_s, first_s, tokens = loop.time(), 0.0, 0
        price = cost(PROFILE, input_tokens=what.input_tokens, output_tokens=what.output_tokens)
        job = Job(
            EngineRequest(f"r{number}", prompt, sampling), tenant_id="t",
            prefill_milli_mu=price.prefill_milli_mu, decode_milli_mu=price.decode_milli_mu,
        )  # fmt: skip
        async for batch in dispatcher.run(job):
            first_s = first_s or loop.time()
            tokens += batch.output_tokens
        assert tokens == what.output_tokens
        return Served(arrival_s - begin_s, first_s - begin_s, loop.time() - begin_s, tokens)

    try:
        return list(await asyncio.gather(*(client(number, what) for number, what in enumerate(requests))))
    finally:
        await engine.stop()


def virtually(served: Sequence[Served], requests: Sequence[TraceRequest]) -> Latencies:
    """The same requests in the simulated fleet, at the moments at which the clients really asked.

    One replica, one router that hears its reports at once, and one tenant with plenty of quota: nothing but the replica
    is in a request's way.
    """
    asked = sorted(
        (SimRequest(each.arrival_s, "", what.input_tokens, what.output_tokens)
         for each, what in zip(served, requests, strict=True)),
        key=lambda each: each.arrival_s,
    )  # fmt: skip
    last_s = asked[-1].arrival_s
    workloads = Workloads(None)
    workloads.put("asked", Workload("asked", tuple(asked), (), ("",), last_s + 10.0))
    scenario = make_scenario(
        Settings(duration_s=last_s + 5.0, routers=1, report_delay_s=0.0),
        [ModelSpec(id="m", hardware=REPLICA.label, target_utilization=1.0)],
        [TenantSpec(id="t", workload="asked", reservation_mu_per_minute=100.0, burst_mu_per_minute=10_000.0)],
    )
    book = Simulation(scenario, workloads).run().books["t"]
    assert book.received == len(book.ttft_s) == len(requests)
    return Latencies(book.ttft_s, book.tpot_s)


FIGURES: dict[str, Callable[[Latencies], float]] = {
    "mean TTFT": lambda seen: float(np.mean(seen.ttft_s)),
    "p50 TTFT": lambda seen: float(np.percentile(seen.ttft_s, 50)),
    "p95 TTFT": lambda seen: float(np.percentile(seen.ttft_s, 95)),
    "mean TPOT": lambda seen: float(np.mean(seen.tpot_s)),
    "p95 TPOT": lambda seen: float(np.percentile(seen.tpot_s, 95)),
}


def compared(served: Sequence[Served], requests: Sequence[TraceRequest]) -> dict[str, tuple[float, float, float]]:
    """Each figure in real and virtual time, ms, and how far the first is off the second."""
    real, virtual = Latencies.seen(served), virtually(served, requests)
    figures = {name: (figure(real), figure(virtual)) for name, figure in FIGURES.items()}
    return {
        name: (1e3 * of_real, 1e3 * of_virtual, of_real / of_virtual - 1)
        for name, (of_real, of_virtual) in figures.items()
    }


def test_without_a_machine_in_the_way_both_agree_to_a_thousandth() -> None:
    """Proves on a whole recorded minute at half load that the agent and the real-time engine, on an event loop that is
    never late, show clients what the simulated fleet says.
    """
    requests = recorded(60.0, keep_every=1)
    assert 0.4 < load_of(requests, 60.0) < 0.7
    served = run_virtually(serve(requests, LoopClock()))
    figures = compared(served, requests)
    assert all(abs(off) < 1e-3 for _, _, off in figures.values()), figures


class LagProbe:
    """How late this event loop is: a task that sleeps and looks at the clock, all the time."""

    def __init__(self) -> None:
        self.late_s: list[float] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + PROBE_S
            await asyncio.sleep(PROBE_S)
            self.late_s.append(loop.time() - due_s)

    @property
    def p95_s(self) -> float:
        """What 19 of 20 wake-ups were late by at most."""
        return float(np.percentile(self.late_s, 95))

    def allowed_s(self, figure: str, output_tokens: float, *, last: bool) -> float:
        """What a figure may be off because the machine was late.

        A client sees lateness at its first token. A request that joined late may also have missed a step, which costs
        about as much on average, and whoever comes at any moment meets the long delays most: that is allowed for where
        no run was quieter. What lasted longer than the engine makes up for stopped its clock, and every answer that was
        under way.

        Args:
            figure: Its name in FIGURES.
            output_tokens: How long answers are.
            last: There will be no other run.
        """
        late_s = np.array(self.late_s)
        if "TPOT" in figure:
            return float(np.maximum(0.0, late_s - MADE_UP_S).sum()) / output_tokens
        seen_s = self.p95_s if "p95" in figure else float(np.mean(late_s))
        return 2 * max(seen_s, float(np.average(late_s, weights=late_s + PROBE_S))) if last else seen_s


async def measured(requests: Sequence[TraceRequest]) -> tuple[list[Served], LagProbe]:
    """Serves the requests in real time, and says how late the event loop was meanwhile."""
    probe = LagProbe()
    probing = asyncio.create_task(probe.run())
    try:
        return await serve(requests, SystemClock()), probe
    finally:
        probing.cancel()


@pytest.mark.timeout(150)
async def test_real_time_shows_clients_what_virtual_time_says() -> None:
    """Proves on 15 recorded seconds in real time that mean, p50, p95 of the time to first token and mean, p95 of the
    time per output token are within 5 % of the simulated fleet's, plus what this machine's event loop was late by
    meanwhile.

    The engine's steps follow its own time, so lateness cannot add up. The probe beside it says how late wake-ups were:
    about a millisecond where nothing else runs, and as much more as other processes take. That is the machine's doing
    and not the engine's, so it is allowed for, and nothing else is. A run on a machine that was late says little where
    the figures disagree: it is repeated, RUNS_MAX in all.
    """
    requests = recorded(15.0, keep_every=1)
    output_tokens = float(np.mean([each.output_tokens for each in requests]))
    told, off = "", [""]
    for run in range(RUNS_MAX):
        served, probe = await measured(requests)
        figures = compared(served, requests)
        allowed_ms = {
            name: TOLERANCE * virtual_ms + 1e3 * probe.allowed_s(name, output_tokens, last=run == RUNS_MAX - 1)
            for name, (_, virtual_ms, _) in figures.items()
        }
        off = [
            name for name, (real_ms, virtual_ms, _) in figures.items() if abs(real_ms - virtual_ms) > allowed_ms[name]
        ]
        told = f"late by {1e3 * probe.p95_s:.1f} ms (p95); {figures}, allowed, ms: {allowed_ms}"
        print(f"{len(requests)} requests, load {load_of(requests, 15.0):.0%}; {told}")
        if not off or probe.p95_s <= QUIET_S:
            break
    assert not off, f"{off}: {told}"
