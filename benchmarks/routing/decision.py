"""What one routing decision costs the router in CPU time, on the router's real objects.

python -m benchmarks.routing.decision

One decision is what the router does to find a replica, in the order of `data_plane/router/routing.py`: write down what
is asked, take the workload's candidates from the fleet (which ages their loads, as often as REQUESTS_PER_S decisions a
second make it do so), look the prompt's blocks up in the model's prefix index, weigh, choose, and keep the best eight
candidates for `fairlead explain`. Beside it stand the same without what `explain` keeps, and what follows a decision:
counting the dispatch, its first token and its end, and one report per request.

Every replica is busy and holds prefixes: of the prompts a quarter are new, a half continue a session that one replica
holds, a quarter share a beginning that all replicas hold, as of one application.

CPU time, because a busy machine only ever adds; still, neighbours slow a core down, so a fixed loop of plain Python
runs between the rounds. `calibrated` is the time on a core that takes REFERENCE_STEP_US for a step of that loop.
Medians of interleaved rounds; the spread is least and greatest.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from random import Random
from typing import Final

from rich.console import Console
from rich.table import Table

from data_plane.router.core.fleet import Fleet, Link
from data_plane.router.core.loads import Dispatch, Report
from data_plane.router.core.policies.cost import Cost
from data_plane.router.core.policies.policy import WEIGHED_MAX, Ask, Pick
from data_plane.router.core.prefix_index import CacheChange
from fairlead.engine.v1 import engine_pb2

SIZES: Final = (3, 8, 64, 512)
BAR_SIZE: Final = 64
BAR_US: Final = 15.0
ROUNDS: Final = 15
DECISIONS: Final = 1_000
REQUESTS_PER_S: Final = 1_000
"""As in the benchmark of the quota decision: more than a router process relays today."""

REFERENCE_STEP_US: Final = 0.05
"""What a step of the reference loop takes where the bar is meant to hold: CPython 3.11 on an idle core of some 3.5 GHz.
An assumption, not a measurement of this run: the step of the run is printed beside."""

_REFERENCE_STEPS: Final = 100_000
_BLOCKS_SHARED: Final = 4
_BLOCKS_PROMPT: Final = 12
_BLOCKS_HELD: Final = 1_000
_CAPACITY: Final = 100_000
_MODEL: Final = "llama"
_SEED: Final = 5
_NS_PER_S: Final = 1_000_000_000
_NS_PER_US: Final = 1_000

Times = dict[str, float]
"""Microseconds of CPU by what was measured."""


class Router:
    """A fleet of one model as a router knows it, and requests for it.

    Args:
        replicas: How many, all in the one subset that is asked for.
    """

    def __init__(self, replicas: int) -> None:
        random = self.random = Random(_SEED)
        self.fleet = Fleet()
        self.policy = Cost()
        self.ids = tuple(f"replica-{number}" for number in range(replicas))
        self.now_ns = _NS_PER_S
        self.sequence = 1
        self.shared = tuple(random.getrandbits(64) for _ in range(_BLOCKS_SHARED))
        self.held: list[list[int]] = []
        for replica_id in self.ids:
            record = engine_pb2.Replica(
                replica_id=replica_id, model_id=_MODEL, state=engine_pb2.REPLICA_STATE_READY, prefix_cache=True
            )
            record.capacity_milli_mu_per_minute = random.randrange(_CAPACITY // 2, _CAPACITY)
            self.fleet.enlist(record, self.now_ns)
            self.held.append([random.getrandbits(64) for _ in range(_BLOCKS_HELD)])
            change = CacheChange(True, (*self.shared, *self.held[-1]), ())
            self.hear(replica_id, change)
            self.fleet.link(replica_id, Link.UP, self.now_ns)
        self.asks = [self._ask(number) for number in range(DECISIONS)]

    def hear(self, replica_id: str, change: CacheChange | None = None) -> None:
        """Takes a report of a busy replica."""
        self.sequence += 1
        random = self.random
        report = Report(
            sequence=self.sequence,
            pending_prefill_milli_mu=random.randrange(2_000),
            decode_milli_mu=random.randrange(10_000),
            queued_decode_milli_mu=random.randrange(1_000),
            requests=random.randrange(40),
            kv_used_tokens=200_000,
            kv_capacity_tokens=500_000,
            dispatches_seen=1,
            cache=change,
        )
        self.fleet.report(replica_id, report, engine_pb2.REPLICA_STATE_READY, self.now_ns)

    def _ask(self, number: int) -> tuple[int, tuple[int, ...], str]:
        """Prefill, blocks and session of a request."""
        random = self.random
        new = tuple(random.getrandbits(64) for _ in range(_BLOCKS_PROMPT))
        blocks = new
        if number % 4 == 1:
            blocks = (*self.shared, *new[_BLOCKS_SHARED:])
        elif number % 4:
            begin = random.randrange(_BLOCKS_HELD - _BLOCKS_PROMPT)
            blocks = tuple(random.choice(self.held)[begin : begin + _BLOCKS_PROMPT])
        return random.randrange(20, 400), blocks, f"session-{number}" if number % 2 else ""

    def decide(self, number: int, weighed_max: int) -> Pick:
        """One decision, with all that belongs to it."""
        prefill, blocks, session = self.asks[number]
        ask = Ask(
            prefill_milli_mu=prefill,
            decode_milli_mu=100,
            input_tokens=3_500,
            prefix_blocks=blocks,
            block_tokens=256.0,
            session_id=session,
            request_id="request",
            tenant_id="tenant",
            weighed_max=weighed_max,
            now_ns=self.now_ns,
        )
        pick = self.policy.pick(ask, self.fleet.candidates(_MODEL, self.ids, self.now_ns))
        if pick is None:
            raise RuntimeError("every replica of the benchmark is ready")
        return pick

    def dispatch(self, number: int, pick: Pick) -> Dispatch:
        """Counts what was decided."""
        member = self.fleet.get(pick.replica_id)
        assert member is not None
        return member.load.dispatch(pick.uncached_prefill_milli_mu, 100, self.now_ns, self.asks[number][1])


def round_of(router: Router) -> Times:
    """Decides every request twice; CPU microseconds per request."""
    times: Times = {}
    pause_ns = _NS_PER_S // REQUESTS_PER_S

    def each(work: Callable[[int], object]) -> float:
        begin_ns = time.process_time_ns()
        for number in range(DECISIONS):
            router.now_ns += pause_ns
            work(number)
        return (time.process_time_ns() - begin_ns) / DECISIONS / _NS_PER_US

    for replica_id in router.ids:
        router.hear(replica_id)
    before_us = reference_step_us()
    times["decision"] = each(lambda number: router.decide(number, WEIGHED_MAX))
    times["reference step"] = (before_us + reference_step_us()) / 2
    times["decision, calibrated"] = times["decision"] * REFERENCE_STEP_US / times["reference step"]
    for replica_id in router.ids:
        router.hear(replica_id)
    times["without explain"] = each(lambda number: router.decide(number, 0))
    for replica_id in router.ids:
        router.hear(replica_id)
    picks = [router.decide(number, 0) for number in range(DECISIONS)]
    dispatches: list[Dispatch] = []
    times["dispatch"] = each(lambda number: dispatches.append(router.dispatch(number, picks[number])))

    def end(number: int) -> None:
        dispatch = dispatches[number]
        dispatch.load.started(dispatch, router.now_ns)
        dispatch.load.ended(dispatch, router.now_ns)

    times["first token and end"] = each(end)
    times["report"] = each(lambda number: router.hear(router.ids[number % len(router.ids)]))
    return times


def reference() -> None:
    """A fixed loop of plain Python: how fast this core is now."""
    value = 0
    for step in range(_REFERENCE_STEPS):
        value = (value * 31 + step) % 1_000_003


def reference_step_us() -> float:
    """CPU time of one step of the reference loop now, microseconds."""
    begin_ns = time.process_time_ns()
    reference()
    return (time.process_time_ns() - begin_ns) / _REFERENCE_STEPS / _NS_PER_US


def measure(console: Console | None = None) -> dict[str, float]:
    """Runs the rounds, prints them.

    Args:
        console: Where the table goes; standard output by default.

    Returns:
        Metrics by name: medians, and the least calibrated one. `routing_decision_us` and
        `routing_decision_calibrated_us` are at 64 candidates; the bar is BAR_US.
    """
    routers = {size: Router(size) for size in SIZES}
    rounds: dict[int, list[Times]] = {size: [] for size in SIZES}
    steps: list[float] = []
    gc.collect()
    gc.freeze()
    try:
        for _ in range(ROUNDS):
            for size, router in routers.items():
                times = round_of(router)
                rounds[size].append(times)
                steps.append(times.pop("reference step"))
    finally:
        gc.unfreeze()
    return _told(rounds, statistics.median(steps), console or Console())


def _told(rounds: dict[int, list[Times]], step_us: float, console: Console) -> dict[str, float]:
    table = Table(title="CPU of a routing decision, microseconds", title_justify="left")
    for column in ("candidates", "part", "median", "least", "greatest"):
        table.add_column(column, justify="left" if column == "part" else "right")
    medians: dict[tuple[int, str], float] = {}
    for size, each_round in rounds.items():
        for part in each_round[0]:
            values = [times[part] for times in each_round]
            medians[size, part] = statistics.median(values)
            shown = (medians[size, part], min(values), max(values))
            table.add_row(str(size), part, *(f"{value:.2f}" for value in shown))
    table.caption = f"A step of the reference loop took {step_us:.3f} us."
    console.print(table)
    return {
        "routing_decision_us": medians[BAR_SIZE, "decision"],
        "routing_decision_calibrated_us": medians[BAR_SIZE, "decision, calibrated"],
        "routing_decision_calibrated_least_us": min(times["decision, calibrated"] for times in rounds[BAR_SIZE]),
        "routing_decision_without_explain_us": medians[BAR_SIZE, "without explain"],
        "routing_dispatch_us": medians[BAR_SIZE, "dispatch"],
        "routing_report_us": medians[BAR_SIZE, "report"],
        "routing_reference_step_us": step_us,
        **{f"routing_decision_{size}_us": medians[size, "decision"] for size in SIZES},
    }


if __name__ == "__main__":
    measure()
