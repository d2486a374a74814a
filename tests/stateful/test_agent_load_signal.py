"""What routers know of a replica, over a network that loses and reorders requests and reports.

Each router keeps its dispatches above a report's `dispatches_seen` on top of that report, and drops reports that are
older than one it has: what is left to prove is that nothing is counted twice or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.agent.core.prefix_cache import CacheChanges
from engines.agent.core.replica_load import Demand, Origin, ReplicaLoad
from model_units.units import MilliModelUnitsPerMinute

CAPACITY = MilliModelUnitsPerMinute(100_000)


@dataclass(frozen=True)
class Sent:
    router: int
    number: int
    demand: Demand
    blocks: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.router}-{self.number}"


@dataclass(frozen=True)
class Report:
    sequence: int
    prefill: int
    queued_decode: int
    decode: int
    seen: int


@dataclass
class Router:
    sent: int = 0
    own: dict[int, Demand] = field(default_factory=dict)  # those that have not ended, by number
    newest: Report = Report(0, 0, 0, 0, 0)
    position: int | None = None
    cached: set[int] = field(default_factory=set)

    def take(self, report: Report) -> None:
        if report.sequence > self.newest.sequence:
            self.newest = report

    def read(self, changes: CacheChanges) -> None:
        self.position = changes.position
        kept = set() if changes.whole else self.cached - set(changes.dropped)
        self.cached = kept | set(changes.added)

    def estimate(self) -> tuple[int, int]:
        above = [demand for number, demand in self.own.items() if number > self.newest.seen]
        return (
            self.newest.prefill + sum(each.prefill_milli_mu for each in above),
            self.newest.queued_decode + self.newest.decode + sum(each.decode_milli_mu for each in above),
        )


class LoadSignal(RuleBasedStateMachine):
    """Proves: once what is on its way has arrived or is known to be lost, and one report came through, every router's
    view is the replica's load to the last mMU; load by key has the requests that are here; and whoever follows the
    cache knows exactly what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = ReplicaLoad(CAPACITY)
        self.replica.engine_started(300, prefix_cache=True)
        self.routers = [Router(), Router()]
        self.on_their_way: list[Sent] = []
        self.reports: list[tuple[int, Report]] = []
        self.here: dict[str, tuple[Sent, bool]] = {}  # with: inside the engine
        self.sequence = 0
        self.now_s = 0.0

    @rule(
        router=st.integers(0, 1),
        prefill=st.integers(0, 500),
        decode=st.integers(0, 500),
        prompt=st.integers(1, 5),
        length=st.integers(1, 4),
    )
    def dispatch(self, router: int, prefill: int, decode: int, prompt: int, length: int) -> None:
        mine = self.routers[router]
        mine.sent += 1
        demand = Demand(f"t{router}", prefill, decode, 50 * length, 10)
        mine.own[mine.sent] = demand
        blocks = tuple(prompt * 10 + place for place in range(length))
        self.on_their_way.append(Sent(router, mine.sent, demand, blocks))

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        self.arrive_one(self.on_their_way.pop(data.draw(st.integers(0, len(self.on_their_way) - 1))))

    def arrive_one(self, sent: Sent) -> None:
        origin = Origin(f"r{sent.router}", sent.number, (sent.router + 1) << 40, sent.blocks)
        self.replica.dispatches.receive(origin.router_id, origin.dispatch_number)
        self.replica.queue(sent.name, sent.demand, origin, self.now_s)
        self.here[sent.name] = (sent, False)

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data())
    def lose_request(self, data: st.DataObject) -> None:
        sent = self.on_their_way.pop(data.draw(st.integers(0, len(self.on_their_way) - 1)))
        del self.routers[sent.router].own[sent.number]

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        sent = self.on_their_way.pop(data.draw(st.integers(0, len(self.on_their_way) - 1)))
        self.replica.dispatches.receive(f"r{sent.router}", sent.number)
        del self.routers[sent.router].own[sent.number]

    @precondition(lambda self: self.here)
    @rule(data=st.data(), tokens=st.integers(0, 7))
    def work(self, data: st.DataObject, tokens: int) -> None:
        self.now_s += 0.1
        name = data.draw(st.sampled_from(sorted(self.here)))
        sent, inside = self.here[name]
        if not inside:
            self.replica.start(name)
            self.here[name] = (sent, True)
        else:
            self.replica.produce(name, tokens, self.now_s)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.here)))
        sent, _ = self.here.pop(name)
        self.replica.end(name)
        del self.routers[sent.router].own[sent.number]

    @rule()
    def restart(self) -> None:
        for name in list(self.here):
            sent, _ = self.here.pop(name)
            self.replica.end(name)
            del self.routers[sent.router].own[sent.number]
        self.replica.engine_started(300, prefix_cache=True)

    @rule(router=st.integers(0, 1))
    def report(self, router: int) -> None:
        self.sequence += 1
        load = self.replica.load()
        self.reports.append(
            (
                router,
                Report(
                    self.sequence,
                    load.pending_prefill_milli_mu,
                    load.queued_decode_milli_mu,
                    load.decode_milli_mu,
                    self.replica.dispatches.seen(f"r{router}"),
                ),
            )
        )

    @precondition(lambda self: self.reports)
    @rule(data=st.data(), lost=st.booleans())
    def report_comes(self, data: st.DataObject, lost: bool) -> None:
        router, report = self.reports.pop(data.draw(st.integers(0, len(self.reports) - 1)))
        if not lost:
            self.routers[router].take(report)

    @rule(router=st.integers(0, 1), broken=st.booleans())
    def stream(self, router: int, broken: bool) -> None:
        mine = self.routers[router]
        mine.read(self.replica.cache.changes(None if broken else mine.position))
        assert mine.cached == set(self.replica.cache)

    @rule()
    def settle(self) -> None:
        for sent in self.on_their_way:
            self.arrive_one(sent)
        self.on_their_way = []
        stale, self.reports = self.reports, []
        for router in (0, 1):
            self.report(router)
        for router, report in [*self.reports, *stale]:
            self.routers[router].take(report)
        self.reports = []
        load = self.replica.load()
        truth = (load.pending_prefill_milli_mu, load.queued_decode_milli_mu + load.decode_milli_mu)
        assert [each.estimate() for each in self.routers] == [truth, truth]

    @invariant()
    def keys_and_requests_agree(self) -> None:
        in_flight = {each.first_key: each.in_flight for each in self.replica.key_loads(self.now_s)}
        for router in (0, 1):
            mine = sum(sent.router == router for sent, _ in self.here.values())
            assert in_flight.get((router + 1) << 40, 0) == mine

    @invariant()
    def nothing_here_is_nothing_reported(self) -> None:
        load = self.replica.load()
        if not self.here:
            assert not load.queued_requests + load.running_requests
            assert not load.pending_prefill_milli_mu + load.decode_milli_mu + load.queued_decode_milli_mu


LoadSignal.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestLoadSignal = LoadSignal.TestCase
