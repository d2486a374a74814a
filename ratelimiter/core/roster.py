"""Every router process that may still be spending, and how much of each workload they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.clock import MonotonicNs
from fairlead.errors import ConflictError
from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.session import Issued, Session
from ratelimiter.core.values import Table, Want, Workload


@dataclass(slots=True)
class Changes:
    """What an event changed: workloads of which less is held, and whether the set of live routers is another one."""

    workloads: set[Workload] = field(default_factory=set)
    membership: bool = False


class Roster:
    """The router processes known to one leader: live ones, and retired ones until what they hold has expired."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str], Session] = {}
        self._inherited: list[tuple[str, Issued]] = []
        self._gone: set[str] = set()
        self._live: list[Session] | None = None  # sorted; None after a session came, went or was retired

    def learn(self, table: Table, ends_ns: MonotonicNs) -> None:
        """Counts a stored table, and what it says is outstanding beside it, until `ends_ns`."""
        session = Session(table.router_id, table.incarnation_id)
        session.report_number = table.report_number
        session.expires_ns = ends_ns
        rates = {workload: int(lease.rate) for workload, lease in table.leases.items()}
        # Until it reports, it is taken to want what it has, so that nothing moves because the leader did.
        session.wants = {w: Want(Rate(rate), Rate(0), MilliModelUnits(0)) for w, rate in rates.items()}
        session.issue(Issued(table.version, rates, ends_ns))
        self._sessions[table.router_id, table.incarnation_id] = session
        self._live = None
        excess = {w: int(rate) - rates.get(w, 0) for w, rate in table.outstanding.items() if rate > rates.get(w, 0)}
        if excess:
            self._inherited.append((table.router_id, Issued(table.version, excess, ends_ns)))

    def live(self) -> Sequence[Session]:
        """The sessions that hold or may get leases, sorted by router: one per router."""
        if self._live is None:
            live = [session for session in self._sessions.values() if not session.retired]
            self._live = sorted(live, key=lambda session: session.router_id)
        return self._live

    def enter(self, router_id: str, incarnation_id: str) -> tuple[Session, bool]:
        """Finds the session of a process that reports, or starts it and retires older processes of the router.

        Args:
            router_id: The router.
            incarnation_id: The process.

        Returns:
            The session, and whether it is new.

        Raises:
            ConflictError: A newer process of this router has reported, or this one has left.
        """
        key = (router_id, incarnation_id)
        session = self._sessions.get(key)
        if session is not None and session.retired:
            raise ConflictError(
                f"router {router_id} was replaced by a newer process, or has left; "
                "give every router an instance_id of its own"
            )
        if session is not None:
            return session, False
        for (other_id, _), older in self._sessions.items():
            if other_id == router_id:
                older.retired = True
        session = self._sessions[key] = Session(*key)
        self._live = None
        self._gone.discard(router_id)
        return session, True

    def leave(self, router_id: str, incarnation_id: str) -> Changes:
        """A process holds nothing any more and will report no more; late reports of it are refused."""
        session = self._sessions.get((router_id, incarnation_id))
        if session is None or session.retired:
            return Changes()
        session.retired = True
        self._live = None
        freed = set(session.spendable)
        session.release()
        self._gone.add(router_id)
        return Changes(freed, membership=True)

    def expire(self, now: MonotonicNs) -> Changes:
        """Forgets every lease whose time is over, and processes that have none left and do not report."""
        changes = Changes()
        for router_id, issued in self._inherited:
            if issued.expires_ns <= now:
                changes.workloads.update(issued.rates)
                self._gone.add(router_id)
        self._inherited = [item for item in self._inherited if item[1].expires_ns > now]
        for key, session in list(self._sessions.items()):
            changes.workloads |= session.expire(now)
            if session.expires_ns <= now:
                del self._sessions[key]
                self._live = None
                changes.membership |= not session.retired
                self._gone.add(session.router_id)
        return changes

    def take_gone(self) -> tuple[str, ...]:
        """Routers of which nothing is left any more, each told once, sorted."""
        holding = {s.router_id for s in self._sessions.values() if s.spendable or not s.retired}
        holding.update(owner for owner, _ in self._inherited)
        gone = self._gone - holding
        self._gone -= gone
        return tuple(sorted(gone))

    def held(self, workload: Workload) -> int:
        """What all processes together could be spending of a workload, milli-MU per minute."""
        held = 0
        for session in self._sessions.values():
            held += session.spendable.get(workload, 0)
        for _, issued in self._inherited:
            held += issued.rates.get(workload, 0)
        return held

    def held_by_the_gone(self, workload: Workload) -> int:
        """The part of it that no live process holds and that only expiry frees."""
        if len(self.live()) == len(self._sessions) and not self._inherited:
            return 0
        held = sum(s.spendable.get(workload, 0) for s in self._sessions.values() if s.retired)
        return held + sum(issued.rates.get(workload, 0) for _, issued in self._inherited)

    def held_by_router(self, router_id: str) -> dict[Workload, int]:
        """What all processes of one router together could be spending."""
        total: dict[Workload, int] = {}
        rates = [s.spendable for s in self._sessions.values() if s.router_id == router_id]
        rates += [dict(issued.rates) for owner, issued in self._inherited if owner == router_id]
        for part in rates:
            for workload, rate in part.items():
                total[workload] = total.get(workload, 0) + rate
        return total
