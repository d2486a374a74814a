"""The limiter's state machine: quotas and reports go in, lease tables come out.

The promise, per workload and at every instant: the rates that all routers together could be spending under any table
they were given, whether it arrived, arrived late or out of order, or was lost, never exceed the largest quota that was
in force within one lease duration. For a quota that does not change that is simply the quota.

How it is kept:

- A table counts from the moment it is made, before it is delivered, until the router acknowledges a newer one of its
  shard (`Report.applied`) or it expires. A router applies one table of a shard at a time, so per router process the
  largest rate counts.
- A router is granted more only as far as the others do not hold it at that moment. So when A's share moves to B, A's
  table shrinks first, and B's grows once A has acknowledged: two to three report intervals.
- A router that must give up something keeps its part meanwhile: what it may be spending already is not counted twice.
  But what was granted before a quota fell runs out, and no part of it may be granted on for longer than that, unless
  there is room for it among what the others are granted on.
- Lease time is counted here from the *arrival* of the report that a table answers, at the router from its *sending*:
  the router stops first. A small guard covers clocks that run at different speeds.
- A restarted router is another process: what the old one holds counts until it expires, and is not available to
  anyone, unless it said goodbye.
- A new leader counts the stored tables, with what they say is outstanding beside them, for a full lease duration.
  Where they come to more than the quota, some may have ended, and been granted to others, before it read them: of
  those a router keeps nothing, and is granted only what nobody holds.

Workloads are spread over shards by tenant, and each shard of each router has a table of its own. One in which nothing
changes is renewed by naming it: it is neither made nor stored nor sent again. So a report costs what has changed since
the last one, however many tenants there are.

Example: quota 100, A wants 100 and holds 99. B reports that it wants 100: its target is 50, but only 1 is free, so it
gets 1, and A is sent a table of 50. A's next report acknowledges it, and B is sent 50.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from common import keys
from common.clock import MonotonicNs
from fairlead.errors import InvalidArgumentError, NotLeaderError
from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.demand import DemandBook
from ratelimiter.core.fill import resplit_quota
from ratelimiter.core.roster import Changes, Roster
from ratelimiter.core.session import Issued, Session
from ratelimiter.core.values import NO_TABLE, Actions, Answer, Lease, Quota, Report, Table, Version, Workload

SHARDS: Final = 64
"""Tables of one router: with 100,000 workloads one table holds 1,600 of them, about 80 KB."""

# Clocks of two machines may differ in speed: NTP slews by at most 0.05 %; 1 % leaves ample room.
_GUARD_PART = 100
# A change is worth an unasked table when it moves more than 1/8 of the quota; smaller ones ride on the next answer.
_PUSH_PART = 8
_BURST_MIN_TIMES = 4
# Most workloads looked at in one call, 0.2 to 0.5 s of computing: with 100,000 of them, a takeover spreads its tables
# over some reports of each router, well within a lease, instead of standing still and losing its leadership.
_LOOKED_AT_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Terms:
    """How leases are granted.

    Attributes:
        lease_ns: How long a lease runs.
        burst_window_s: Burst = rate x this, seconds.
        burst_min: Least burst at each router, as far as the whole quota saves up that much in a burst window: what is
            left of a small quota when it is split over routers must still hold a request. With more than four routers,
            each has its part of four times that: over all of them, bursts are at most those of the quota and that much.
    """

    lease_ns: int
    burst_window_s: int
    burst_min: MilliModelUnits


class Limiter:
    """One leadership's worth of leases. Made anew for every epoch.

    Args:
        epoch: The leader's fencing epoch.
        terms: How leases are granted.
    """

    def __init__(self, epoch: int, terms: Terms) -> None:
        self.epoch = epoch
        self._terms = terms
        self._table_number = 0
        self._quotas: dict[Workload, Quota] = {}
        self._shards: dict[Workload, int] = {}
        self._roster = Roster()
        self._targets: dict[Workload, list[int]] = {}
        self._changed: set[Workload] = set()
        self._learned = NO_TABLE  # the newest table of an earlier leader, or of this one before it started over
        self._doubted: set[Workload] | None = None  # of which more was learned than there is; None before the quotas
        self._last_end_ns = MonotonicNs(0)
        # Quotas that fell below what was out, and when all that was out then will have ended.
        self._lowered: list[tuple[MonotonicNs, set[Workload]]] = []

    def learn(self, tables: Iterable[Table], now: MonotonicNs) -> None:
        """Counts the tables an earlier leader left in the store, before the first quotas are set.

        Args:
            tables: Every stored table.
            now: Read after the tables were.
        """
        for table in tables:
            end_ns = self._end_of(now, table.lease_ns)
            self._roster.learn(table, end_ns)
            self._last_end_ns = max(self._last_end_ns, end_ns)
            self._learned = max(self._learned, table.version)
            if table.version.epoch == self.epoch:
                # This leadership's own, from before it had to start over: numbers must go on growing.
                self._table_number = max(self._table_number, table.version.number)
        self._roster.retire_older()
        self._absorb(Changes(membership=True))

    def set_quotas(self, quotas: Mapping[Workload, Quota]) -> None:
        """Replaces all quotas; a workload that is absent has none."""
        changed = {w for w in self._quotas.keys() | quotas.keys() if self._quotas.get(w) != quotas.get(w)}
        self._quotas = dict(quotas)
        lowered = {workload for workload in changed if self._roster.held(workload) > self._quota(workload)}
        if lowered:
            self._lowered.append((self._last_end_ns, lowered))
        if self._doubted is None:
            self._doubted = lowered
        self._absorb(Changes(changed))

    def report(self, report: Report, now: MonotonicNs) -> Answer:
        """Takes a router's report.

        Args:
            report: What arrived; late and repeated ones are harmless.
            now: When it arrived.

        Returns:
            What becomes of the router's tables. New ones count as outstanding already.

        Raises:
            ConflictError: A newer process of this router has reported, or this one has left.
            NotLeaderError: The router applies a table of a newer leader.
            InvalidArgumentError: The router claims a table that was never granted.
        """
        self._check_applied(report)
        self._absorb(self._roster.expire(now))
        session, new = self._roster.enter(report.router_id, report.incarnation_id)
        if new:
            self._absorb(Changes(membership=True))
        for shard, applied in report.applied.items():
            self._absorb(Changes(session.shelf(shard).acknowledge(applied)))
        if report.number > session.report_number:
            session.report_number = report.number
            session.expires_ns = max(session.expires_ns, self._end_of(now, self._terms.lease_ns))
            self._last_end_ns = max(self._last_end_ns, session.expires_ns)
            self._absorb(Changes(self._roster.take_wants(session, report.wants)))
        return self._answer(session, report)

    def leave(self, router_id: str, incarnation_id: str) -> None:
        """A router process says goodbye: it applies no lease any more, and late reports of it are refused."""
        self._absorb(self._roster.leave(router_id, incarnation_id))

    def tick(self, now: MonotonicNs) -> Actions:
        """What is due without being asked: tables that change notably, and routers that are gone.

        Args:
            now: Call it after every change and at least once a second.
        """
        self._absorb(self._roster.expire(now))
        self._lowered = [item for item in self._lowered if item[0] > now]
        live = [session for session in self._roster.live() if session.reported]
        due: dict[tuple[str, int], Session] = {}
        looked_at = heapq.nsmallest(_LOOKED_AT_MAX, self._changed)
        for workload in looked_at:
            shard = self._shard(workload)
            for session in self._notable(workload, shard, live):
                due[session.router_id, shard] = session
        self._changed.difference_update(looked_at)
        tables = [self._issue(session, shard) for (_, shard), session in due.items()]
        return Actions(tuple(table for table in tables if table is not None), self._roster.take_gone())

    def take_gone(self) -> tuple[str, ...]:
        """Routers without any lease left since this, or a tick, told of them last."""
        return self._roster.take_gone()

    @property
    def demand(self) -> DemandBook | None:
        """Wants, use and holds over all routers; None while a router of the last leader has not been heard yet."""
        return self._roster.demand if all(session.reported for session in self._roster.live()) else None

    def outstanding(self, workload: Workload) -> int:
        """What all routers together could be spending of a workload, milli-MU per minute."""
        return self._roster.held(workload)

    def quotas(self) -> dict[Workload, Rate]:
        """What is granted of every workload, milli-MU per minute."""
        return {workload: quota.granted for workload, quota in self._quotas.items()}

    def routers(self) -> list[str]:
        """Routers that hold or may get leases, sorted."""
        return [session.router_id for session in self._roster.live()]

    def _check_applied(self, report: Report) -> None:
        for applied in report.applied.values():
            if applied.epoch > self.epoch:
                raise NotLeaderError(f"router {report.router_id} already follows epoch {applied.epoch}")
            if applied > Version(self.epoch, self._table_number):
                raise InvalidArgumentError(
                    f"router {report.router_id} claims table {applied.number}, which was never granted",
                    field="applied",
                )

    def _absorb(self, changes: Changes) -> None:
        """Everything that depends on what changed must be looked at again."""
        if changes.membership:
            self._targets.clear()
            changes.workloads.update(self._quotas)
        if not changes.workloads:
            return
        live = self._roster.live()
        for workload in changes.workloads:
            self._targets.pop(workload, None)
            shard = self._shard(workload)
            for session in live:
                session.shelf(shard).dirty.add(workload)
        self._changed |= changes.workloads

    def _shard(self, workload: Workload) -> int:
        shard = self._shards.get(workload)
        if shard is None:
            shard = self._shards[workload] = keys.tenant_shard(workload.tenant_id, SHARDS)
        return shard

    def _quota(self, workload: Workload) -> int:
        quota = self._quotas.get(workload)
        return quota.granted if quota else 0

    def _end_of(self, now: MonotonicNs, lease_ns: int) -> MonotonicNs:
        return MonotonicNs(now + lease_ns + lease_ns // _GUARD_PART)

    def _notable(self, workload: Workload, shard: int, live: Sequence[Session]) -> list[Session]:
        """The routers whose rate should change now rather than with their next answer."""
        quota = self._quota(workload)
        notable = []
        for session in live:
            has = session.shelf(shard).rate(workload)
            if has > quota or abs(self._rate_for(session, shard, workload) - has) > quota // _PUSH_PART:
                notable.append(session)
        return notable

    def _answer(self, session: Session, report: Report) -> Answer:
        tables, renewed, looked_at = [], {}, 0
        for shard in session.shards_in_turn():
            shelf = session.shelves[shard]
            if shelf.dirty or shelf.unknown or self._overstated(session, shard):
                if looked_at > _LOOKED_AT_MAX:
                    # Not renewed as it is either: its rates may be above what is in force now. Its time runs on.
                    session.next_shard = shard if session.next_shard is None else session.next_shard
                    continue
                looked_at += len(shelf.dirty)
                self._issue(session, shard)
            table = shelf.table
            if table is None:
                continue
            shelf.renew(table.version, session.expires_ns)
            if report.applied.get(shard) == table.version:
                renewed[shard] = table.version
            else:
                tables.append(table)
        return Answer(self.epoch, report.number, self._terms.lease_ns, tuple(tables), renewed)

    def _issue(self, session: Session, shard: int) -> Table | None:
        """Makes a table if anything is different from the newest one."""
        shelf = session.shelf(shard)
        before = shelf.table.leases if shelf.table is not None else {}
        leases = dict(before)
        for workload in shelf.dirty:
            lease = self._lease(workload, self._rate_for(session, shard, workload))
            if lease is not None:
                leases[workload] = lease
            else:
                leases.pop(workload, None)
        shelf.dirty.clear()
        if leases == before and not shelf.unknown and not self._overstated(session, shard):
            return None
        shelf.unknown = False
        self._table_number += 1
        version = Version(self.epoch, self._table_number)
        rates = {workload: int(lease.rate) for workload, lease in leases.items()}
        session.issue(shard, Issued(version, rates, session.expires_ns))
        held = self._roster.held_by_router(session.router_id, shard)
        shelf.table = Table(
            router_id=session.router_id,
            incarnation_id=session.incarnation_id,
            shard=shard,
            version=version,
            report_number=session.report_number,
            lease_ns=self._terms.lease_ns,
            leases={workload: leases[workload] for workload in sorted(leases)},
            outstanding={w: Rate(held[w]) for w in sorted(held) if held[w] > rates.get(w, 0)},
        )
        return shelf.table

    def _overstated(self, session: Session, shard: int) -> bool:
        """Whether a stored table still names older ones as outstanding that have been acknowledged or have ended since.

        The next leader would count them for a whole lease, and grant that much less.
        """
        table = session.shelf(shard).table
        if table is None or not table.outstanding:
            return False
        held = self._roster.held_by_router(session.router_id, shard)
        return any(held.get(workload, 0) < rate for workload, rate in table.outstanding.items())

    def _lease(self, workload: Workload, rate: int) -> Lease | None:
        if rate <= 0:
            return None
        quota = self._quotas[workload]
        # The outstanding rates never exceed the quota, so safe rates in this proportion never exceed the guarantee.
        safe_rate = quota.guaranteed * rate // quota.granted
        window_s = self._terms.burst_window_s
        least = min(self._terms.burst_min, _BURST_MIN_TIMES * self._terms.burst_min // len(self._roster.live()))
        burst = max(rate * window_s // 60, min(least, quota.granted * window_s // 60))
        return Lease(Rate(rate), MilliModelUnits(burst), Rate(safe_rate), quota.granted)

    def _rate_for(self, session: Session, shard: int, workload: Workload) -> int:
        """What a router may be granted now: its target, as far as the others do not hold it, or it holds it itself."""
        target = self._target(workload, shard)[session.position]
        if not target:
            return 0
        mine = session.shelf(shard).spendable.get(workload, 0)
        free = self._quota(workload) - self._roster.held(workload) + mine
        if free >= min(target, mine):
            return min(target, free)
        return max(0, free, min(target, self._kept(session, shard, workload)))

    def _kept(self, session: Session, shard: int, workload: Workload) -> int:
        """What a router may go on with while more is out than the quota: no instant to come may have more for it."""
        shelf, quota = session.shelf(shard), self._quota(workload)
        doubted = self._doubted is not None and workload in self._doubted
        kept = shelf.still(workload, 0, self._learned if doubted else NO_TABLE)
        for end_ns, lowered in self._lowered:
            if workload in lowered:
                mine = shelf.still(workload, end_ns)
                kept = min(kept, max(mine, quota - self._roster.held_after(workload, shard, end_ns) + mine))
        return kept

    def _target(self, workload: Workload, shard: int) -> list[int]:
        """Where each live router's rate should end up once everyone has acknowledged, in the roster's order."""
        target = self._targets.get(workload)
        if target is None:
            live = self._roster.live()
            wants = [session.wanted(workload) for session in live]
            has = [session.shelf(shard).rate(workload) for session in live]
            free = max(0, self._quota(workload) - self._roster.held_by_the_gone(workload, shard))
            target = self._targets[workload] = resplit_quota(free, wants, has)
        return target
