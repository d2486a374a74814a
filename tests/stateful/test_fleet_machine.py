"""The router's fleet against a naive model: records, load streams, reports in any order, failures, requests, time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from data_plane.router.core.candidate import Health
from data_plane.router.core.fleet import REPORT_STALE_S, UNTRIED_GRACE_S, Fleet, Link, Member
from data_plane.router.core.loads import (
    ABSURD_MINUTES,
    DISPATCH_UNSEEN_NS,
    SEQUENCE_FORGOTTEN_NS,
    Dispatch,
    ReplicaLoad,
    Report,
)
from fairlead.engine.v1 import engine_pb2

NAMES = ("r1", "r2", "r3", "r4", "r5")
MODELS = ("m", "n")
SUBSETS = (("r1", "r2", "r3"), ("r3", "r4"), ("r9",), ())
CAPACITY = 60_000_000
NS_PER_S = 10**9
STATES = st.sampled_from(
    [
        engine_pb2.REPLICA_STATE_READY,
        engine_pb2.REPLICA_STATE_READY,
        engine_pb2.REPLICA_STATE_STARTING,
        engine_pb2.REPLICA_STATE_UNHEALTHY,
        engine_pb2.REPLICA_STATE_DRAINING,
    ]
)


@dataclass
class Naive:
    """A replica as the table in fleet.py has it, and the requests that this router has on it."""

    model_id: str
    recorded: int
    known_ns: int
    listed: bool = True
    link: Link = Link.UNTRIED
    said: int = 0
    heard_ns: int = 0
    failed_ns: int = 0
    sequence: int = 0
    sent: int = 0
    counts: bool = False
    unseen: list[Dispatch] = field(default_factory=list)
    open: list[Dispatch] = field(default_factory=list)

    def health(self, now_ns: int) -> Health:
        """What a router should believe."""
        state = self.said or self.recorded
        if self.link is Link.REFUSED:
            return Health.CLOSED
        if state == engine_pb2.REPLICA_STATE_UNHEALTHY:
            return Health.DOUBTFUL
        if state != engine_pb2.REPLICA_STATE_READY:
            return Health.CLOSED
        if self.link is Link.UP:
            if not self.said:
                return Health.READY
            fresh = now_ns - self.heard_ns <= REPORT_STALE_S * NS_PER_S
            return Health.READY if fresh and self.failed_ns <= self.heard_ns else Health.DOUBTFUL
        young = now_ns - self.known_ns <= UNTRIED_GRACE_S * NS_PER_S
        return Health.READY if self.link is Link.UNTRIED and young else Health.DOUBTFUL


class FleetMachine(RuleBasedStateMachine):
    """Five replicas of two models under one router."""

    make: Callable[[], Any] = Fleet

    @initialize()
    def start(self) -> None:
        self.fleet = self.make()
        self.naive: dict[str, Naive] = {}
        self.now_ns = 10**12
        for name in NAMES[:4]:
            self.enlist(name, "m" if name != "r4" else "n", engine_pb2.REPLICA_STATE_READY)
        for name in NAMES[:2]:
            self.link(name, Link.UP)
            self.report(name, 1, engine_pb2.REPLICA_STATE_READY, 5_000, 0)

    def forget(self, *names: str) -> None:
        """Of these, unlisted replicas stay only while their agents report."""
        for name in [name for name in names if name in self.naive]:
            each = self.naive[name]
            heard = self.now_ns - each.heard_ns <= REPORT_STALE_S * NS_PER_S
            if not each.listed and not (each.link is Link.UP and heard):
                del self.naive[name]

    @rule(name=st.sampled_from(NAMES), model_id=st.sampled_from([*MODELS, "m", "m"]), state=STATES)
    def enlist(self, name: str, model_id: str, state: engine_pb2.ReplicaState.ValueType) -> None:
        record = engine_pb2.Replica(
            replica_id=name, model_id=model_id, state=state, capacity_milli_mu_per_minute=CAPACITY
        )
        self.fleet.enlist(record, self.now_ns)
        if name in self.naive and self.naive[name].model_id != model_id:
            del self.naive[name]
        each = self.naive.setdefault(name, Naive(model_id, state, self.now_ns))
        each.recorded, each.listed = state, True

    @rule(name=st.sampled_from(NAMES))
    def delist(self, name: str) -> None:
        self.fleet.delist(name, self.now_ns)
        if name in self.naive:
            self.naive[name].listed = False
            self.forget(name)

    @rule(name=st.sampled_from(NAMES), link=st.sampled_from([Link.UP, Link.UP, Link.SILENT, Link.REFUSED]))
    def link(self, name: str, link: Link) -> None:
        self.fleet.link(name, link, self.now_ns)
        if name in self.naive:
            self.naive[name].link = link
            self.forget(name)

    @rule(
        name=st.sampled_from(NAMES),
        newer=st.integers(-2, 3),
        state=STATES,
        pending=st.sampled_from([0, 1, 5_000, 10**6, -7, 10**15]),
        seen=st.integers(0, 5),
    )
    def report(self, name: str, newer: int, state: int, pending: int, seen: int) -> None:
        """A report arrives: the next one, a late one, or one that says nonsense."""
        each = self.naive.get(name)
        sequence = max(0, (each.sequence if each else 0) + newer)
        received = min(seen, each.sent) if each else 0
        self.fleet.report(name, Report(sequence, pending, 0, dispatches_seen=received), state, self.now_ns)
        if each is None or (sequence <= each.sequence and self.now_ns - each.heard_ns < SEQUENCE_FORGOTTEN_NS):
            return
        each.sequence, each.said, each.heard_ns = sequence, state, self.now_ns
        if received:
            before = each.unseen if each.counts else each.open
            each.unseen = [dispatch for dispatch in before if dispatch.number > received]
            each.counts = True
        else:
            each.unseen = [sent for sent in each.unseen if self.now_ns - sent.sent_ns < DISPATCH_UNSEEN_NS]
        sane = 0 <= pending < ABSURD_MINUTES * CAPACITY
        waiting = sum(sent.prefill_milli_mu for sent in each.open if sent.started_ns is None)
        unseen = sum(sent.prefill_milli_mu for sent in each.unseen if sent.started_ns is None)
        known = pending + unseen if sane else waiting
        member = self.fleet.get(name)
        assert member is not None
        member.load.settle()
        assert known <= member.load.pending_prefill_milli_mu <= max(known, waiting), "exact at the moment of a report"

    @rule(name=st.sampled_from(NAMES), prefill=st.sampled_from([0, 100, 40_000]))
    def dispatch(self, name: str, prefill: int) -> None:
        member, each = self.fleet.get(name), self.naive.get(name)
        if member is None or each is None:
            return
        member.load.settle()
        before = member.load.pending_prefill_milli_mu
        sent = member.load.dispatch(prefill, 10, self.now_ns)
        each.sent += 1
        assert sent.number == each.sent
        each.open.append(sent)
        each.unseen.append(sent)
        member.load.settle()
        assert member.load.pending_prefill_milli_mu >= min(prefill, before + prefill) - 1

    @precondition(lambda self: any(each.open for each in self.naive.values()))
    @rule(data=st.data(), ends=st.booleans())
    def progress(self, data: st.DataObject, ends: bool) -> None:
        """A request gets its first token, or ends, perhaps twice."""
        name = data.draw(st.sampled_from(sorted(name for name, each in self.naive.items() if each.open)))
        each = self.naive[name]
        sent = data.draw(st.sampled_from(each.open))
        if not ends:
            sent.load.started(sent, self.now_ns)
            return
        sent.load.ended(sent, self.now_ns)
        sent.load.ended(sent, self.now_ns)
        each.open.remove(sent)
        each.unseen = [other for other in each.unseen if other is not sent]

    @rule(name=st.sampled_from(NAMES))
    def failed(self, name: str) -> None:
        self.fleet.failed(name, self.now_ns)
        if name in self.naive:
            self.naive[name].failed_ns = self.now_ns

    @rule(seconds=st.sampled_from([0.001, 0.03, 1.0, 2.9, 3.1, 5.0, 5.1, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * NS_PER_S)

    @rule()
    def sweep(self) -> None:
        self.fleet.sweep(self.now_ns)
        self.forget(*NAMES)

    @invariant()
    def members_and_their_health_are_those_of_the_model(self) -> None:
        assert {member.record.replica_id for member in self.fleet} == self.naive.keys()
        for name, each in self.naive.items():
            member = self.fleet.get(name)
            assert member is not None
            assert self.fleet.health(member, self.now_ns) is each.health(self.now_ns), (name, each)
            assert member.load.in_flight == len(each.open)
            member.load.settle()
            assert member.load.pending_prefill_milli_mu >= 0 <= member.load.decode_milli_mu
        for model_id in MODELS:
            ours = [each for each in self.naive.values() if each.model_id == model_id]
            counts = self.fleet.count(model_id, self.now_ns)
            assert counts == {health: sum(each.health(self.now_ns) is health for each in ours) for health in Health}

    @invariant()
    def pools_are_what_a_workload_may_use_now(self) -> None:
        """The known part of the subset, or everybody; of these the ready ones, or all open ones in a panic."""
        for model_id in MODELS:
            known = {name: each for name, each in self.naive.items() if each.model_id == model_id}
            for subset in SUBSETS:
                wanted = [name for name in subset if name in known] or sorted(known)
                pool = self.fleet.candidates(model_id, subset, self.now_ns)
                assert [each.replica_id for each in pool.members] == wanted
                health = {name: known[name].health(self.now_ns) for name in wanted}
                ready = [name for name in wanted if health[name] is Health.READY]
                open_ = [name for name in wanted if health[name] is not Health.CLOSED]
                panic = 2 * len(ready) < len(open_)
                assert [each.replica_id for each in pool.eligible] == (open_ if panic else ready)
                assert pool.panic == panic
                assert all(isinstance(each, ReplicaLoad) for each in pool.members)


class Mistaken:
    """A fleet behind somebody who makes a mistake: a compiled one takes no subclass."""

    def __init__(self) -> None:
        self.whole = Fleet()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.whole)


class TrustsRecords(Mistaken):
    """A router that believes the store rather than a broken stream."""

    def link(self, replica_id: str, link: Link, now_ns: int) -> None:
        if link is not Link.SILENT:
            self.whole.link(replica_id, link, now_ns)


class NeverForgets(Mistaken):
    """A router that keeps what the store and the stream gave up."""

    def sweep(self, now_ns: int) -> None:
        del now_ns


@pytest.mark.parametrize("broken", [TrustsRecords, NeverForgets])
def test_the_machine_catches_a_broken_fleet(broken: type[Mistaken]) -> None:
    """Each of these mistakes is found, so that the machine's silence means something."""

    class Machine(FleetMachine):
        make = broken

    search = settings(
        max_examples=300, stateful_step_count=30, deadline=None, derandomize=True, phases=(Phase.generate,)
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=search)


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
