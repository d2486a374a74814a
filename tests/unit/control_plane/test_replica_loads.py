"""Load streams to real gRPC servers that behave, break, hang and talk nonsense."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from common.clock import FakeClock
from common.shard_map import Generation
from control_plane.core.heartbeats import SILENT_S
from control_plane.core.sharding.values import KeyLoad
from control_plane.metrics import ControlPlaneMetrics
from control_plane.replica_loads import KEY_LOADS_MAX, REMEMBERED_S, HeldGenerations, ReplicaLoads, key_loads
from fairlead.engine.v1 import engine_pb2
from fairlead.reservation_limits import RATE_MAX_MILLI_MU_PER_MINUTE
from tests.support.agents import FakeAgent
from tests.support.waiting import eventually


class Watching:
    """The streams of some agents, and what they led to."""

    def __init__(self, *agents: FakeAgent) -> None:
        self.clock = FakeClock()
        self.registered = {agent.replica_id: agent.record() for agent in agents}
        self.changes = 0
        registry = CollectorRegistry()
        self.loads = ReplicaLoads(
            lambda: self.registered.values(), "control-plane-1", self.clock, ControlPlaneMetrics(registry)
        )
        self.registry = registry

    def changed(self) -> None:
        self.changes += 1

    def heard(self, model_id: str = "tiny") -> set[str]:
        return set(self.loads.reports(model_id))

    def told(self, replica_id: str) -> Sequence[KeyLoad]:
        last = self.loads.reports("tiny").get(replica_id)
        return last.loads() if last is not None else ()


@contextlib.asynccontextmanager
async def watching(*agents: FakeAgent) -> AsyncIterator[Watching]:
    """Listens to agents, and ends it."""
    watch = Watching(*agents)
    task = asyncio.create_task(watch.loads.run(watch.changed))
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_loads_by_key_arrive_and_follow() -> None:
    """Proves that the newest report of every replica is there by model, and that streams come and go with replicas."""
    async with FakeAgent("a") as a, FakeAgent("b", "other") as b, watching(a, b) as watch:
        a.load(5 << 32, 1_000, "acme", warm_tokens=70, in_flight=2)
        await eventually(lambda: watch.told("a") and watch.heard("other"))
        assert watch.told("a") == (KeyLoad(5 << 32, 1_000, 70, 2, "acme"),)
        assert watch.heard() == {"a"}
        a.says.key_loads[0].rate_milli_mu_per_minute = 9_000
        await eventually(lambda: watch.told("a")[0].rate == 9_000)
        del watch.registered["b"]
        await eventually(lambda: b.watched == 0, what="the stream of a replica that left ends")
        assert watch.heard("other") == {"b"}, "its last report is remembered for a while"
        watch.clock.advance(REMEMBERED_S + 1)
        await eventually(lambda: not watch.heard("other"))
    assert a.watched == 0


async def test_a_crash_is_seen_before_the_lease_ends() -> None:
    """Proves that a closed port is a death at once, told by a call, with what was in flight still known; and that the
    stream comes back with the replica."""
    async with FakeAgent("a") as a, FakeAgent("b") as b, watching(a, b) as watch:
        a.load(1 << 32, 500, in_flight=3)
        await eventually(lambda: watch.heard() == {"a", "b"} and watch.told("a"))
        await a.crash()
        await eventually(lambda: watch.loads.dead == {"a"}, 5.0)
        assert watch.changes == 1
        assert watch.told("a")[0].in_flight == 3
        again = FakeAgent("a")
        async with again:
            watch.registered["a"] = again.record()
            await eventually(lambda: watch.loads.dead == set(), 5.0)


async def test_a_stream_that_hangs_is_a_death_after_a_while() -> None:
    """Proves that silence on an open stream counts like a crash, and that one that never spoke is not judged."""
    async with FakeAgent("a") as a, FakeAgent("b") as b, FakeAgent("mute") as mute:
        mute.silent = True
        async with watching(a, b, mute) as watch:
            await eventually(lambda: watch.heard() == {"a", "b"})
            a.silent = True
            # Its last word has arrived: one that came after the clock has moved would count as a sign of life.
            await eventually(lambda: watch.loads.reports("tiny")["a"].report.sequence == a.says.sequence)
            watch.clock.advance(SILENT_S + 1)
            await eventually(lambda: watch.loads.dead == {"a"}, 5.0)
            assert watch.registry.get_sample_value("fairlead_sharder_replicas_silent") == 1
            a.silent = False
            await eventually(lambda: watch.loads.dead == set(), 5.0)


async def test_most_of_the_fleet_gone_at_once_is_not_believed() -> None:
    """Proves that two of three agents that crash together are nobody's death."""
    async with FakeAgent("a") as a, FakeAgent("b") as b, FakeAgent("c") as c, watching(a, b, c) as watch:
        await eventually(lambda: watch.heard() == {"a", "b", "c"})
        await asyncio.gather(a.crash(), b.crash())
        await eventually(lambda: watch.registry.get_sample_value("fairlead_sharder_replicas_silent") == 2)
        assert watch.loads.dead == set()


async def test_another_replica_at_the_address_is_the_end_of_the_first() -> None:
    """Proves that the newest start of an agent wins its address: reports of another one are never taken for the old."""
    async with FakeAgent("old") as agent, FakeAgent("b") as b, watching(agent, b) as watch:
        await eventually(lambda: watch.heard() == {"old", "b"})
        agent.says.replica_id = "new"
        await eventually(lambda: watch.loads.dead == {"old"}, 5.0)


async def test_newer_assignments_are_told_at_once() -> None:
    """Proves that a replica which holds a newer assignment is noticed, and one that tells nonsense is not."""
    async with FakeAgent("a") as a, watching(a) as watch:
        await eventually(lambda: watch.heard() == {"a"})
        a.says.assignment.incarnation, a.says.assignment.number = 3, 9
        await eventually(lambda: watch.loads.newest_generation("tiny") == Generation(3, 9))
        assert watch.changes == 1
        a.says.assignment.incarnation = 2**64 - 1
        await eventually(lambda: watch.loads.newest_generation("tiny") == Generation())
        assert watch.changes == 1
        assert watch.loads.newest_generation("unknown") == Generation()


async def test_a_replica_that_cannot_be_dialled_is_nobodys_death() -> None:
    """Proves that an address that is no address, or one nobody ever answered at, neither breaks nor kills."""
    async with FakeAgent("a") as a, watching(a) as watch:
        for number, address in enumerate(("nonsense", "127.0.0.1:1", "[::1]:x", "")):
            watch.registered[f"r{number}"] = engine_pb2.Replica(replica_id=f"r{number}", address=address)
        await eventually(lambda: watch.heard() == {"a"})
        b = FakeAgent("b")
        async with b:
            watch.registered["b"] = b.record()
            await eventually(lambda: watch.heard() == {"a", "b"})
        assert watch.loads.dead <= {"b"}


async def test_wide_fleets_are_heard() -> None:
    """Proves that 512 streams run side by side and all end."""
    async with FakeAgent("a", interval_s=1.0) as a:
        a.says.replica_id = ""
        watch = Watching()
        watch.registered = {f"r{n}": a.record(replica_id=f"r{n}") for n in range(512)}
        task = asyncio.create_task(watch.loads.run(watch.changed))
        await eventually(lambda: len(watch.heard()) == 512, 30.0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await eventually(lambda: a.watched == 0)


def said(sequence: int, number: int = 0) -> engine_pb2.LoadReport:
    report = engine_pb2.LoadReport(sequence=sequence)
    if number:
        report.assignment.incarnation, report.assignment.number = 1, number
    report.key_loads.add(first_key=1, rate_milli_mu_per_minute=5)
    return report


def test_what_is_computed_from_does_not_change_meanwhile() -> None:
    """Proves that reports may arrive and be forgotten while a thread reads those there were."""
    watch = Watching()
    watch.loads._take(said(1), "a", "tiny", watch.changed)
    reports = watch.loads.reports("tiny")
    reading = iter(reports.items())
    watch.loads._take(said(1), "b", "tiny", watch.changed)
    watch.loads._take(said(2), "a", "tiny", watch.changed)
    assert [(name, [each.rate for each in last.loads()]) for name, last in reading] == [("a", [5])]
    assert set(watch.loads.reports("tiny")) == {"a", "b"}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["tiny", "other"]), st.integers(0, 5)), max_size=40))
def test_the_newest_held_is_the_newest_of_all(reports: list[tuple[str, str, int]]) -> None:
    """Proves the running maximum against reading all reports, whoever takes a newer one back, goes or comes."""
    watch, heard = Watching(), dict[str, tuple[str, int]]()
    for sequence, (replica_id, model_id, number) in enumerate(reports):
        before = watch.loads.newest_generation(model_id)
        changes = watch.changes
        watch.loads._take(said(sequence, number), replica_id, model_id, watch.changed)
        heard[replica_id] = model_id, number
        for each in ("tiny", "other"):
            numbers = [number for model, number in heard.values() if model == each]
            newest = max(numbers, default=0)
            assert watch.loads.newest_generation(each) == (Generation(1, newest) if newest else Generation())
        if replica_id not in {name for name, *_ in reports[:sequence]} or Generation(1, number) > before:
            assert (watch.changes > changes) == (number > before.number)


def test_a_new_assignment_of_a_wide_fleet_costs_each_report_the_same() -> None:
    """Proves that noticing what a replica holds does not read what all others hold."""
    watch = Watching()
    hashed = 0

    class Counted(HeldGenerations):
        def change(self, before: Generation, now: Generation) -> None:
            nonlocal hashed
            hashed += len(self._holders)
            super().change(before, now)

    watch.loads._held["tiny"] = Counted()
    for number in (1, 2):
        for replica in range(2_000):
            watch.loads._take(said(number, number), f"r{replica}", "tiny", watch.changed)
    assert (watch.loads.newest_generation("tiny"), watch.changes) == (Generation(1, 2), 2)
    assert hashed <= 2 * 4_000, "only the generations that differ are kept"


def test_nonsense_in_reports_is_bounded() -> None:
    """Proves that negative, endless and too many amounts become what can be true."""
    report = engine_pb2.LoadReport()
    report.key_loads.add(first_key=1, rate_milli_mu_per_minute=-5, warm_tokens=-1, in_flight=-3)
    report.key_loads.add(first_key=2, rate_milli_mu_per_minute=2**62, warm_tokens=2**62)
    for _ in range(KEY_LOADS_MAX):
        report.key_loads.add()
    loads = key_loads(report)
    assert len(loads) == KEY_LOADS_MAX
    assert loads[0] == KeyLoad(1, 0, 0, 0)
    assert loads[1].rate == RATE_MAX_MILLI_MU_PER_MINUTE
    assert loads[1].warm_tokens < 2**62
