"""Leases: which lease tables this router applies, and since when their time runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from common.clock import Clock
from common.logs import get_logger
from data_plane.router.core.holds import BucketKey, Holds, LeaseTerms
from fairlead.quota.v1 import quota_pb2

log = get_logger(__name__)

# Reports whose sending time is remembered: at one per second far more than a lease lasts.
_REPORTS_KEPT = 120


class LeaseDesk:
    """Applies lease tables, shard by shard, in order of (epoch, number), each as long as the report it answers allows.

    A table may come as the answer to a report or through the store; both are the same table, and the second to come
    changes nothing. One for an earlier process of this router only sets the safe rates, and empty buckets: its leases
    may be spent, and a router that restarts again and again must not have a burst each time.
    Whoever has heard a leader listens to no older one.

    Args:
        holds: Where they come into force.
        clock: Monotonic time.
        router_id: This router.
        incarnation_id: This process.
    """

    def __init__(self, holds: Holds, clock: Clock, *, router_id: str, incarnation_id: str) -> None:
        self._holds = holds
        self._clock = clock
        self._router_id = router_id
        self._incarnation_id = incarnation_id
        self._sent_ns: OrderedDict[int, int] = OrderedDict()
        self._applied: dict[int, tuple[int, int]] = {}
        self._seeded: set[int] = set()
        self._epoch = 0
        self._report_number = 0

    @property
    def applied(self) -> Mapping[int, tuple[int, int]]:
        """(epoch, table number) of the table in force by shard; this process's own only."""
        return self._applied

    @property
    def usable(self) -> bool:
        """Whether a limiter has answered, or any table, old or new, was ever applied."""
        return bool(self._epoch or self._seeded)

    def next_report(self) -> int:
        """Numbers a report that is being sent now."""
        self._report_number += 1
        self._sent_ns[self._report_number] = self._clock.monotonic_ns()
        while len(self._sent_ns) > _REPORTS_KEPT:
            self._sent_ns.popitem(last=False)
        return self._report_number

    def answer(self, answer: quota_pb2.ReportWantsResponse) -> None:
        """Takes the answer to a report: new tables come into force, those that are named run on."""
        sent_ns = self._sent_ns.get(answer.report_number)
        if sent_ns is None or answer.epoch < self._epoch:
            return
        self._epoch = answer.epoch
        expires_ns = sent_ns + answer.lease_duration.ToNanoseconds()
        for table in answer.tables:
            if table.router_id == self._router_id and table.incarnation_id == self._incarnation_id:
                self._apply(table, expires_ns)
        now_ns = self._clock.monotonic_ns()
        for renewed in answer.renewed:
            if self._applied.get(renewed.shard) == (renewed.epoch, renewed.table_number):
                self._holds.renew(renewed.shard, expires_ns=expires_ns, now_ns=now_ns)

    def take(self, table: quota_pb2.LeaseTable) -> bool:
        """Applies a table that came through the store, if it is newer than the one in force.

        Returns:
            Whether it was applied.
        """
        if table.router_id != self._router_id:
            return False
        if table.incarnation_id != self._incarnation_id:
            return self._seed(table)
        sent_ns = self._sent_ns.get(table.report_number)
        if sent_ns is None or table.epoch < self._epoch:
            return False
        return self._apply(table, sent_ns + table.lease_duration.ToNanoseconds())

    def _apply(self, table: quota_pb2.LeaseTable, expires_ns: int) -> bool:
        version, in_force = (table.epoch, table.table_number), self._applied.get(table.shard, (0, 0))
        now_ns = self._clock.monotonic_ns()
        if version == in_force:
            self._holds.renew(table.shard, expires_ns=expires_ns, now_ns=now_ns)
        if version <= in_force:
            return False
        self._epoch = max(self._epoch, table.epoch)
        self._applied[table.shard] = version
        self._holds.apply(_terms(table), expires_ns=expires_ns, now_ns=now_ns, shard_number=table.shard)
        return True

    def _seed(self, table: quota_pb2.LeaseTable) -> bool:
        """Takes over what an earlier process of this router was granted, as if it had expired."""
        if self._epoch or table.shard in self._seeded:
            return False
        self._seeded.add(table.shard)
        now_ns = self._clock.monotonic_ns()
        self._holds.apply(_terms(table), expires_ns=now_ns, now_ns=now_ns, shard_number=table.shard, spent=True)
        log.info("safe rates of the previous process in force", shard=table.shard, leases=len(table.leases))
        return True


def _terms(table: quota_pb2.LeaseTable) -> dict[BucketKey, LeaseTerms]:
    return {
        (lease.tenant_id, lease.model_id): LeaseTerms(
            rate_milli_mu_per_minute=max(0, lease.rate_milli_mu_per_minute),
            burst_milli_mu=max(0, lease.burst_milli_mu),
            safe_rate_milli_mu_per_minute=max(0, lease.safe_rate_milli_mu_per_minute),
            quota_milli_mu_per_minute=max(0, lease.quota_milli_mu_per_minute),
        )
        for lease in table.leases
    }
