"""The control side that decides who may use how much: capacity allocator and rate limiter, by the product's cores.

    routers --wants, every second--> limiter --demand--> allocator --quotas--> limiter --leases--> routers

Calls take no time here; what goes through the store takes `control_delay_s`. Elections, restarts and outages of the
control side are not simulated: there is one leader from beginning to end.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Final

from capacity.core.caution import Caution
from capacity.core.live import LiveLedgers
from capacity.core.values import Demand, Model, ModelLedger, Reservation
from capacity.translate import replica_from
from common.clock import MonotonicNs
from data_plane.router.core.holds import LeaseTerms
from fairlead.engine.v1 import engine_pb2
from model_units.units import MilliModelUnits
from ratelimiter.core.lease import Limiter, Terms
from ratelimiter.core.values import Quota, Report, Table, Version, Want, Workload
from ratelimiter.translate import answer_to, table_to
from simulation.kernel import NS_PER_S, Loop
from simulation.router import Router

# The services' default settings: ratelimiter/config.py and capacity/config.py.
_TERMS: Final = Terms(lease_ns=10 * NS_PER_S, burst_window_s=30, burst_min=MilliModelUnits(2000))
_REPORT_INTERVAL_S: Final = 1.0
# The router's own: data_plane/router/limiter_client.py.
_EARLY_INTERVAL_S: Final = 0.2
_DEBOUNCE_S: Final = 0.1
_TICK_S: Final = 1.0
_DEMAND_INTERVAL_S: Final = 1.0
_DEMAND_LOOK_S: Final = 0.2
_ROUND_S: Final = 2.0


# More than any fleet serves, and yet far from the limits of whole numbers on a wire.
_WITHOUT_LIMIT: Final = 10**12


def admit_all(routers: Sequence[Router], reservations: Sequence[Reservation]) -> None:
    """Gives every router leases that never run out; weights among tenants stay what they bought.

    Args:
        routers: All of them.
        reservations: Of every tenant.
    """
    leases = {
        (each.tenant_id, each.model_id): LeaseTerms(_WITHOUT_LIMIT, _WITHOUT_LIMIT, _WITHOUT_LIMIT, each.reserved)
        for each in reservations
    }
    for router in routers:
        router.holds.apply(leases, expires_ns=sys.maxsize, now_ns=0)


class Allocator:
    """Quotas out of live capacity, reservations and demand.

    Args:
        loop: Virtual time.
        models: Every model.
        reservations: Every reservation.

    Attributes:
        ledgers: Of the last round, by model.
    """

    def __init__(self, loop: Loop, models: Sequence[Model], reservations: Sequence[Reservation]) -> None:
        self._loop = loop
        self._live = LiveLedgers()
        for model in models:
            self._live.set_model(model.model_id, model)
        for reservation in reservations:
            self._live.set_reservation(reservation.model_id, reservation.tenant_id, reservation)
        self._caution = Caution(MonotonicNs(0))
        self._round_planned = False
        self._limiters: list[RateLimiter] = []
        self._granted: dict[str, dict[Workload, Quota]] = {}
        self._fed: dict[Workload, Quota] = {}
        self.ledgers: dict[str, ModelLedger] = {}
        loop.after(0.0, self._regular)

    def feed(self, limiter: RateLimiter) -> None:
        """Quotas go to this limiter."""
        self._limiters.append(limiter)

    def on_record(self, replica_id: str, record: engine_pb2.Replica | None) -> None:
        """The store's watch on replicas."""
        self._live.set_replica(replica_id, None if record is None else replica_from(record))
        self._soon()

    def take_demand(self, demand: Mapping[str, Mapping[str, Demand]]) -> None:
        """The limiter's report, by model and tenant."""
        if self._live.set_demand(demand):
            self._soon()

    def _soon(self) -> None:
        if not self._round_planned:
            self._round_planned = True
            self._loop.after(_DEBOUNCE_S, self._round)

    def _regular(self, _: object) -> None:
        self._soon()
        self._loop.after(_ROUND_S, self._regular)

    def _round(self, _: object) -> None:
        self._round_planned = False
        now = MonotonicNs(self._loop.now_ns)
        for model_id in self._live.changed(now):
            self._live.compute(model_id, now)
        quotas: dict[Workload, Quota] = {}
        for ledger in self._live.ledgers:
            before = self._granted.get(ledger.model_id, {})
            granted = sum(quota.granted for quota in before.values())
            doubted = self._caution.doubts(ledger.model_id, ledger.have, granted, now)
            if doubted or self.ledgers.get(ledger.model_id) is ledger:
                quotas |= before
            else:
                mine = {
                    Workload(ledger.model_id, row.tenant_id): Quota(row.granted, row.guaranteed)
                    for row in ledger.quotas
                    if row.granted > 0
                }
                self._granted[ledger.model_id] = mine
                self.ledgers[ledger.model_id] = ledger
                quotas |= mine
        if quotas != self._fed:
            self._fed = quotas
            for limiter in self._limiters:
                limiter.take_quotas(quotas)


class RateLimiter:
    """Leases out of quotas and the routers' wants.

    Args:
        loop: Virtual time.
        routers: All of them.
        allocator: Gets the demand, gives the quotas.
        delay_ns: Of the store.
        random: Spreads the routers' reports.
    """

    def __init__(
        self, loop: Loop, routers: Sequence[Router], allocator: Allocator, delay_ns: int, random: Random
    ) -> None:
        self._loop = loop
        self._routers = {router.router_id: router for router in routers}
        self._allocator = allocator
        self._delay_ns = delay_ns
        self._random = random
        self._limiter = Limiter(1, _TERMS)
        self._told_ns = 0
        self._tick_planned = False
        self._turns = {router.router_id: 0 for router in routers}
        self._reported_ns = dict.fromkeys(self._turns, 0)
        allocator.feed(self)
        for router in routers:
            self._plan(router, random.uniform(0.0, _REPORT_INTERVAL_S))
            router.demand.on_notable(partial(self._hurry, router))
        loop.after(0.0, self._regular)
        loop.after(0.0, self._tell_demand)

    def take_quotas(self, quotas: Mapping[Workload, Quota]) -> None:
        """The allocator has written quotas."""
        self._loop.at(self._loop.now_ns + self._delay_ns, self._set_quotas, quotas)

    def outstanding(self, workload: Workload) -> int:
        """What all routers together could be spending of a workload, mMU per minute."""
        return self._limiter.outstanding(workload)

    def _set_quotas(self, quotas: Mapping[Workload, Quota]) -> None:
        self._limiter.set_quotas(quotas)
        self._soon()

    def _plan(self, router: Router, seconds: float) -> None:
        """The next report comes then, and none that was planned before."""
        self._turns[router.router_id] += 1
        self._loop.after(seconds, self._report, (router, self._turns[router.router_id]))

    def _hurry(self, router: Router) -> None:
        """What a router has to say cannot wait for its turn."""
        since_s = (self._loop.now_ns - self._reported_ns[router.router_id]) / NS_PER_S
        self._plan(router, max(0.0, _EARLY_INTERVAL_S - since_s))

    def _report(self, planned: tuple[Router, int]) -> None:
        """A router says what it wants and gets its leases."""
        router, turn = planned
        if turn != self._turns[router.router_id]:
            return
        now_ns = self._reported_ns[router.router_id] = self._loop.now_ns
        rows = router.demand.report(now_ns, held=router.holds.held(), waiting=router.batch.waiting())
        wants = {
            Workload(row.model_id, row.tenant_id): Want(
                row.wants_milli_mu_per_minute,  # type: ignore[arg-type]  # the units' new types are erased on the wire
                row.used_milli_mu_per_minute,  # type: ignore[arg-type]
                row.held_milli_mu,  # type: ignore[arg-type]
            )
            for row in rows
        }
        applied = {shard: Version(*version) for shard, version in router.desk.applied.items()}
        report = Report(router.router_id, router.router_id, router.desk.next_report(), applied, wants)
        answer = self._limiter.report(report, MonotonicNs(now_ns))
        wall_ns = self._loop.wall_ns()
        router.desk.answer(answer_to(answer, [table_to(table, wall_ns) for table in answer.tables]))
        self._soon()
        self._plan(router, _REPORT_INTERVAL_S * self._random.uniform(0.9, 1.0))

    def _deliver(self, table: Table) -> None:
        self._routers[table.router_id].desk.take(table_to(table, self._loop.wall_ns()))

    def _soon(self) -> None:
        if not self._tick_planned:
            self._tick_planned = True
            self._loop.after(_DEBOUNCE_S, self._tick)

    def _regular(self, _: object) -> None:
        self._soon()
        self._loop.after(_TICK_S, self._regular)

    def _tick(self, _: object) -> None:
        self._tick_planned = False
        actions = self._limiter.tick(MonotonicNs(self._loop.now_ns))
        for table in actions.tables:
            self._loop.at(self._loop.now_ns + self._delay_ns, self._deliver, table)

    def _tell_demand(self, _: object) -> None:
        """Demand goes to the allocator every second, and at once when it has changed notably."""
        demand = self._limiter.demand
        if demand is not None:
            old = self._loop.now_ns - self._told_ns >= _DEMAND_INTERVAL_S * NS_PER_S
            if old or demand.notable:
                self._told_ns = self._loop.now_ns
                by_model: dict[str, dict[str, Demand]] = {}
                for workload, want in demand.tell().items():
                    by_model.setdefault(workload.model_id, {})[workload.tenant_id] = Demand(want.wants, want.used)
                self._allocator.take_demand(by_model)
        self._loop.after(_DEMAND_LOOK_S, self._tell_demand)
