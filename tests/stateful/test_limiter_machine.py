"""The limiter against a naive model of everything routers, networks and leaders can do to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

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

from common import keys
from common.clock import NS_PER_S, MonotonicNs
from fairlead.errors import ConflictError
from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.lease import SHARDS, Limiter, Terms
from ratelimiter.core.roster import Roster
from ratelimiter.core.session import Issued, Session, Shelf
from ratelimiter.core.values import NO_TABLE, Answer, Lease, Quota, Report, Table, Version, Want, Workload

LEASE_NS = 10 * NS_PER_S
# The limiter's guard: it counts a lease 1 % longer than the router does.
COUNTED_NS = LEASE_NS + LEASE_NS // 100
# The first two share a shard, the third does not.
WORKLOADS = (Workload("m", "a"), Workload("n", "a"), Workload("m", "c"))
SHARD = {workload: keys.tenant_shard(workload.tenant_id, SHARDS) for workload in WORKLOADS}
ROUTERS = ("r0", "r1", "r2")
# Often the same again: what does not change is renewed.
WANTS = st.tuples(*[st.sampled_from((0, 60, 200)) | st.integers(0, 200)] * 3)


@dataclass
class Process:
    """A router process as the world sees it: what it sent when, and every table that was ever written for it."""

    router_id: str
    incarnation_id: str
    sent_ns: list[int] = field(default_factory=list)
    written: list[Table] = field(default_factory=list)
    ends_ns: dict[Version, int] = field(default_factory=dict)
    applied: dict[int, Version] = field(default_factory=dict)
    left: bool = False

    def receive(self, table: Table) -> None:
        """A table was stored: from now on it may arrive at any time."""
        if table not in self.written:
            self.written.append(table)
        self.renew(table.version, table.report_number)

    def renew(self, version: Version, report_number: int) -> None:
        """The latest end a table can have at this router, whenever the renewal arrives."""
        end = self.sent_ns[report_number - 1] + LEASE_NS
        self.ends_ns[version] = max(self.ends_ns.get(version, 0), end)

    def apply(self, table: Table) -> None:
        if table.version > self.applied.get(table.shard, NO_TABLE):
            self.applied[table.shard] = table.version

    def worst_case(self, workload: Workload, now: int) -> int:
        """The most it could be spending: any unexpired table it applies now or could still come to apply."""
        return max((int(lease.rate) for lease in self._possible(workload, now)), default=0)

    def worst_safe_rate(self, workload: Workload, now: int) -> int:
        """The highest safe rate among the same tables."""
        return max((int(lease.safe_rate) for lease in self._possible(workload, now)), default=0)

    def _possible(self, workload: Workload, now: int) -> list[Lease]:
        return [
            table.leases[workload]
            for table in self.written
            if not self.left
            and workload in table.leases
            and table.version >= self.applied.get(table.shard, NO_TABLE)
            and self.ends_ns[table.version] > now
        ]


class LimiterMachine(RuleBasedStateMachine):
    """Random interleavings of reports, losses, delays, restarts, quota changes and takeovers."""

    @initialize()
    def start(self) -> None:
        self.now = NS_PER_S
        self.epoch = 1
        self.limiter = self.new_limiter()
        self.quotas: dict[Workload, Quota] = {}
        self.quota_history: list[tuple[int, dict[Workload, Quota]]] = [(0, {})]
        self.current: dict[str, Process] = {}
        self.processes: list[Process] = []
        self.delayed: list[Report] = []
        self.unwritten: list[tuple[Process, Answer]] = []
        self.store: dict[tuple[str, int], Table] = {}
        for router_id in ROUTERS:
            self.restart(router_id)
        self.change_quotas((100, 100, 100))

    def new_limiter(self) -> Limiter:
        return Limiter(self.epoch, Terms(LEASE_NS, burst_window_s=30, burst_min=MilliModelUnits(2000)))

    def ns(self) -> MonotonicNs:
        return MonotonicNs(self.now)

    @rule(router_id=st.sampled_from(ROUTERS))
    def restart(self, router_id: str) -> None:
        """The old process may be cut off rather than dead: it stays in the sum until its leases end."""
        process = Process(router_id, f"p{len(self.processes)}")
        self.current[router_id] = process
        self.processes.append(process)

    @rule(
        router_id=st.sampled_from(ROUTERS),
        wants=WANTS,
        delayed=st.booleans(),
    )
    def send_report(self, router_id: str, wants: tuple[int, int, int], delayed: bool) -> None:
        process = self.current[router_id]
        if process.left:
            return
        process.sent_ns.append(self.now)
        wanted = {w: Want(Rate(rate), Rate(0), MilliModelUnits(0)) for w, rate in zip(WORKLOADS, wants, strict=True)}
        report = Report(router_id, process.incarnation_id, len(process.sent_ns), dict(process.applied), wanted)
        if delayed:
            self.delayed.append(report)
        else:
            self.arrive(report)

    @rule(router_id=st.sampled_from(ROUTERS), wants=WANTS)
    def healthy_exchange(self, router_id: str, wants: tuple[int, int, int]) -> None:
        """A report, its answer written and applied at once: how it goes nearly always."""
        self.send_report(router_id, wants, delayed=False)
        self.write(len(self.unwritten))
        process = self.current[router_id]
        for table in process.written:
            process.apply(table)

    @rule(
        router_id=st.sampled_from(ROUTERS),
        wants=WANTS,
        times=st.integers(2, 4),
        seconds=st.sampled_from([1.0, 9.0]),
    )
    def steady_exchanges(self, router_id: str, wants: tuple[int, int, int], times: int, seconds: float) -> None:
        """One router goes on while the others may be silent for longer than a lease."""
        for _ in range(times):
            self.healthy_exchange(router_id, wants)
            self.advance(seconds)
            self.worst_case_is_within_the_quota()

    @precondition(lambda self: self.delayed)
    @rule(data=st.data(), again=st.booleans())
    def late_report_arrives(self, data: st.DataObject, again: bool) -> None:
        report = data.draw(st.sampled_from(self.delayed))
        if not again:
            self.delayed.remove(report)
        self.arrive(report)

    def arrive(self, report: Report) -> None:
        try:
            process = next(p for p in self.processes if p.incarnation_id == report.incarnation_id)
            self.unwritten.append((process, self.limiter.report(report, self.ns())))
        except ConflictError:
            assert any(p.incarnation_id == report.incarnation_id for p in self.processes)

    @rule()
    def tick(self) -> None:
        actions = self.limiter.tick(self.ns())
        for table in actions.tables:
            process = next(p for p in self.processes if p.incarnation_id == table.incarnation_id)
            self.unwritten.append((process, Answer(self.epoch, table.report_number, LEASE_NS, (table,), {})))
        for key in [key for key in self.store if key[0] in actions.routers_gone]:
            del self.store[key]

    @rule(count=st.integers(1, 5))
    def write(self, count: int) -> None:
        """The leader's commits land, in order; what they answer is on its way from then on."""
        for process, answer in self.unwritten[:count]:
            for table in answer.tables:
                stored = self.store.get((table.router_id, table.shard))
                if stored is None or stored.version < table.version:
                    self.store[table.router_id, table.shard] = table
                process.receive(table)
                process.renew(table.version, answer.report_number)
            for version in answer.renewed.values():
                process.renew(version, answer.report_number)
        del self.unwritten[:count]

    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        """A router receives any table written for it, by answer or by watch, in any order; it never goes back."""
        process = data.draw(st.sampled_from(self.processes))
        newer = [t for t in process.written if t.version > process.applied.get(t.shard, NO_TABLE)]
        if newer:
            process.apply(data.draw(st.sampled_from(newer)))

    @rule(router_id=st.sampled_from(ROUTERS))
    def leave(self, router_id: str) -> None:
        process = self.current[router_id]
        process.left = True
        self.limiter.leave(router_id, process.incarnation_id)

    @rule(granted=st.tuples(*[st.integers(0, 150)] * 3))
    def change_quotas(self, granted: tuple[int, int, int]) -> None:
        self.quotas = {w: Quota(Rate(q), Rate(q // 2)) for w, q in zip(WORKLOADS, granted, strict=True) if q}
        self.quota_history.append((self.now, self.quotas))
        self.limiter.set_quotas(self.quotas)

    @rule(seconds=st.sampled_from([0.3, 1.0, 4.0, 9.0, 10.5]))
    def advance(self, seconds: float) -> None:
        self.now += round(seconds * NS_PER_S)

    @rule()
    def takeover(self) -> None:
        """Another instance wins: what was not written by then never will be."""
        self.unwritten.clear()
        self.epoch += 1
        self.limiter = self.new_limiter()
        self.limiter.learn(self.store.values(), self.ns())
        self.limiter.set_quotas(self.quotas)

    @invariant()
    def worst_case_is_within_the_quota(self) -> None:
        for workload in WORKLOADS:
            worst = sum(process.worst_case(workload, self.now) for process in self.processes)
            assert worst <= self.largest_quota(workload), f"{workload} over-granted"

    def largest_quota(self, workload: Workload) -> int:
        """The largest quota in force at any time within one counted lease duration."""
        since, largest = self.now - COUNTED_NS, 0
        ends = [start for start, _ in self.quota_history[1:]] + [self.now + 1]
        for (_, quotas), end in zip(self.quota_history, ends, strict=True):
            if end >= since and workload in quotas:
                largest = max(largest, quotas[workload].granted)
        return largest

    @invariant()
    def limiter_counts_no_less_than_the_world(self) -> None:
        for workload in WORKLOADS:
            worst = sum(process.worst_case(workload, self.now) for process in self.processes)
            assert worst <= self.limiter.outstanding(workload), f"{workload} undercounted"

    @invariant()
    def safe_rates_stay_within_the_guarantee(self) -> None:
        """At a steady quota, no mix of tables that routers may hold promises more than the guarantee."""
        for workload, quota in self.quotas.items():
            if self.now - self.quota_history[-1][0] > COUNTED_NS:
                safe = sum(process.worst_safe_rate(workload, self.now) for process in self.processes)
                assert safe <= quota.guaranteed, f"{workload} over-promised"


LimiterMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLimiter = LimiterMachine.TestCase


def count_only_the_newest(shelf: Shelf, issued: Issued) -> None:
    shelf.release()
    for workload, rate in issued.rates.items():
        shelf.spendable[workload] = rate
        shelf._holdings.move(workload, rate)
    shelf._issued = [issued]


def renew_nothing(shelf: Shelf, version: Version, expires_ns: MonotonicNs) -> None:
    pass


def learn_nothing(roster: Roster, table: Table, ends_ns: MonotonicNs) -> None:
    pass


LEARN = Roster.learn


def learn_without_what_is_outstanding(roster: Roster, table: Table, ends_ns: MonotonicNs) -> None:
    LEARN(roster, replace(table, outstanding={}), ends_ns)


@pytest.mark.parametrize(
    ("owner", "method", "bug"),
    [
        (Shelf, "issue", count_only_the_newest),
        (Roster, "learn", learn_nothing),
        (Roster, "learn", learn_without_what_is_outstanding),
    ],
)
def test_machine_notices(owner: type, method: str, bug: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that the machine can fail: with one safety rule switched off it finds that too much is out."""
    monkeypatch.setattr(owner, method, bug)
    search = settings(
        max_examples=2_000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
    )
    with pytest.raises(AssertionError, match=r"over-granted|undercounted|over-promised"):
        run_state_machine_as_test(LimiterMachine, settings=search)


def steady_exchange() -> None:
    """One router asks for the same again, and its table lives by its renewals alone."""
    machine = LimiterMachine()
    machine.start()
    machine.change_quotas((100, 100, 100))
    for _ in range(3):
        machine.healthy_exchange("r0", (60, 60, 60))
        machine.advance(9.0)
        machine.tick()
        machine.worst_case_is_within_the_quota()
        machine.limiter_counts_no_less_than_the_world()
        machine.safe_rates_stay_within_the_guarantee()


def test_a_lost_renewal_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for renewals, step by step: random steps seldom leave a table as it is for a whole lease."""
    steady_exchange()
    monkeypatch.setattr(Shelf, "renew", renew_nothing)
    with pytest.raises(AssertionError, match="undercounted"):
        steady_exchange()


def takeover_after_silence() -> None:
    """One router falls silent, another gets its part once its lease has ended, and the next leader finds both."""
    machine = LimiterMachine()
    machine.start()
    machine.healthy_exchange("r1", (60, 60, 60))
    machine.steady_exchanges("r0", (200, 200, 200), 3, 9.0)
    machine.takeover()
    machine.healthy_exchange("r1", (60, 60, 60))
    machine.worst_case_is_within_the_quota()


def keep_all(limiter: Limiter, session: Session, shard: int, workload: Workload) -> int:
    return session.shelf(shard).spendable.get(workload, 0)


def test_a_revived_lease_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for leases that had ended when the next leader read them: random steps find it, but not each time."""
    takeover_after_silence()
    monkeypatch.setattr(Limiter, "_kept", keep_all)
    with pytest.raises(AssertionError, match="over-granted"):
        takeover_after_silence()
