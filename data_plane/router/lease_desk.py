"""Leases: which lease table this router applies, and since when its time runs."""

from __future__ import annotations

from collections import OrderedDict

from common.clock import Clock
from common.logs import get_logger
from data_plane.router.core.holds import BucketKey, Holds, LeaseTerms
from fairlead.quota.v1 import quota_pb2

log = get_logger(__name__)

# Reports whose sending time is remembered: at one per second far more than a lease lasts.
_REPORTS_KEPT = 120


class LeaseDesk:
    """Applies lease tables in order of (epoch, number), each for its duration from the report it answers.

    A table may come as the answer to a report or through the store; both are the same table. One for an earlier process
    of this router only sets the safe rates: its leases may be spent already.

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
        self._applied = (0, 0)
        self._report_number = 0
        self._seeded = False

    @property
    def applied(self) -> tuple[int, int]:
        """(epoch, table number) of the table in force; zeros for none of this process's own."""
        return self._applied

    @property
    def usable(self) -> bool:
        """Whether any table, old or new, was ever applied."""
        return self._seeded or self._applied != (0, 0)

    def next_report(self) -> int:
        """Numbers a report that is being sent now."""
        self._report_number += 1
        self._sent_ns[self._report_number] = self._clock.monotonic_ns()
        while len(self._sent_ns) > _REPORTS_KEPT:
            self._sent_ns.popitem(last=False)
        return self._report_number

    def take(self, table: quota_pb2.LeaseTable) -> bool:
        """Applies a table if it is newer than the one in force.

        Args:
            table: From an answer or from the store.

        Returns:
            Whether it was applied.
        """
        if table.router_id != self._router_id:
            return False
        if table.incarnation_id != self._incarnation_id:
            return self._seed(table)
        version = (table.epoch, table.table_number)
        sent_ns = self._sent_ns.get(table.report_number)
        if version <= self._applied or sent_ns is None:
            return False
        self._applied = version
        self._holds.apply(
            _terms(table),
            expires_ns=sent_ns + table.lease_duration.ToNanoseconds(),
            now_ns=self._clock.monotonic_ns(),
        )
        return True

    def _seed(self, table: quota_pb2.LeaseTable) -> bool:
        """Takes over what an earlier process of this router was granted, as if it had expired."""
        if self.usable:
            return False
        self._seeded = True
        now_ns = self._clock.monotonic_ns()
        self._holds.apply(_terms(table), expires_ns=now_ns, now_ns=now_ns)
        log.info("safe rates of the previous process in force", leases=len(table.leases))
        return True


def _terms(table: quota_pb2.LeaseTable) -> dict[BucketKey, LeaseTerms]:
    return {
        (lease.tenant_id, lease.model_id): LeaseTerms(
            rate_milli_mu_per_minute=max(0, lease.rate_milli_mu_per_minute),
            burst_milli_mu=max(0, lease.burst_milli_mu),
            safe_rate_milli_mu_per_minute=max(0, lease.safe_rate_milli_mu_per_minute),
        )
        for lease in table.leases
    }
