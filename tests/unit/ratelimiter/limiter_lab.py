"""One workload at a limiter, and healthy routers that report to it."""

from __future__ import annotations

from common import keys
from common.clock import NS_PER_S, MonotonicNs
from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.lease import SHARDS, Limiter, Terms
from ratelimiter.core.values import Quota, Report, Table, Want, Workload

W = Workload("m", "t")
SHARD = keys.tenant_shard("t", SHARDS)
LEASE_S = 10
QUOTA = 100_000


def at(seconds: float) -> MonotonicNs:
    return MonotonicNs(round((1000 + seconds) * NS_PER_S))


def new_limiter(quota: int = QUOTA, guaranteed: int | None = None, epoch: int = 7) -> Limiter:
    limiter = Limiter(epoch, Terms(LEASE_S * NS_PER_S, burst_window_s=30, burst_min=MilliModelUnits(2000)))
    limiter.set_quotas({W: Quota(Rate(quota), Rate(quota if guaranteed is None else guaranteed))})
    return limiter


class Router:
    """A healthy router: numbers its reports, applies every table it is given."""

    def __init__(self, limiter: Limiter, router_id: str, incarnation_id: str = "1") -> None:
        self.limiter = limiter
        self.router_id = router_id
        self.incarnation_id = incarnation_id
        self.number = 0
        self.table: Table | None = None

    def request(self, wants: int) -> Report:
        self.number += 1
        applied = {SHARD: self.table.version} if self.table else {}
        want = Want(Rate(wants), Rate(wants // 2), MilliModelUnits(0))
        return Report(self.router_id, self.incarnation_id, self.number, applied, {W: want})

    def report(self, wants: int, seconds: float) -> int:
        answer = self.limiter.report(self.request(wants), at(seconds))
        assert len(answer.tables) + len(answer.renewed) <= 1, "there is one workload"
        for table in answer.tables:
            self.take(table)
        return self.rate

    def take(self, table: Table) -> None:
        assert self.table is None or table.version > self.table.version
        self.table = table

    @property
    def rate(self) -> int:
        return int(self.table.leases[W].rate) if self.table and W in self.table.leases else 0


def push(limiter: Limiter, *routers: Router, seconds: float) -> list[str]:
    tables = limiter.tick(at(seconds)).tables
    for table in tables:
        next(router for router in routers if router.router_id == table.router_id).take(table)
    return [table.router_id for table in tables]
