"""Every router process that may still be spending, and how much of each workload they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from common.clock import MonotonicNs
from fairlead.errors import ConflictError
from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.demand import DemandBook
from ratelimiter.core.session import Holdings, Issued, Session
from ratelimiter.core.values import Table, Want, Workload


@dataclass(slots=True)
class Changes:
    """What an event changed: workloads of which less is held, and whether the set of live routers is another one."""

    workloads: set[Workload] = field(default_factory=set)
    membership: bool = False


class Roster:
    """The router processes known to one leader: live ones, and retired ones until what they hold has expired.

    Attributes:
        demand: What the live ones want, as far as they have reported.
    """

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str], Session] = {}
        self._inherited: list[tuple[str, Issued]] = []
        self._gone: set[str] = set()
        self._live: list[Session] | None = None  # sorted; None after a session came, went or was retired
        self._holdings = Holdings()
        self.demand = DemandBook()

    def learn(self, table: Table, ends_ns: MonotonicNs) -> None:
        """Counts a stored table, and what it says is outstanding beside it, until `ends_ns`."""
        key = (table.router_id, table.incarnation_id)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = Session(*key, self._holdings)
            self._live = None
        session.report_number = max(session.report_number, table.report_number)
        session.expires_ns = max(session.expires_ns, ends_ns)
        rates = {workload: int(lease.rate) for workload, lease in table.leases.items()}
        # Until it reports, it is taken to want what it has, so that nothing moves because the leader did.
        wants = {w: Want(Rate(rate), Rate(0), MilliModelUnits(0)) for w, rate in rates.items()}
        session.take_wants({**session.wants, **wants})
        session.reported = False
        session.issue(table.shard, Issued(table.version, rates, ends_ns))
        session.shelf(table.shard).unknown = True
        excess = {w: int(rate) - rates.get(w, 0) for w, rate in table.outstanding.items() if rate > rates.get(w, 0)}
        if excess:
            self._inherited.append((table.router_id, Issued(table.version, excess, ends_ns)))
            for workload, rate in excess.items():
                self._holdings.move(workload, rate)

    def retire_older(self) -> None:
        """After learning: of several processes of one router, only the one with the newest table may go on."""
        newest: dict[str, Session] = {}
        for session in self._sessions.values():
            other = newest.setdefault(session.router_id, session)
            if other is not session:
                old, new = sorted((other, session), key=lambda each: max(s.latest for s in each.shelves.values()))
                self._retire(old)
                newest[session.router_id] = new

    def live(self) -> Sequence[Session]:
        """The sessions that hold or may get leases, sorted by router: one per router."""
        if self._live is None:
            live = [session for session in self._sessions.values() if not session.retired]
            self._live = sorted(live, key=lambda session: session.router_id)
            for position, session in enumerate(self._live):
                session.position = position
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
        session = Session(*key, self._holdings)
        for older in self._of(router_id):
            self._retire(older)
            for shard in older.shelves:
                # What the store holds there are the older process's leases, and the new one has put them into force.
                session.shelf(shard).unknown = True
        self._sessions[key] = session
        self._live = None
        self._gone.discard(router_id)
        return session, True

    def leave(self, router_id: str, incarnation_id: str) -> Changes:
        """A process holds nothing any more and will report no more; late reports of it are refused."""
        session = self._sessions.get((router_id, incarnation_id))
        if session is None or session.retired:
            return Changes()
        self._retire(session)
        self._gone.add(router_id)
        return Changes(session.release(), membership=True)

    def take_wants(self, session: Session, wants: Mapping[Workload, Want]) -> set[Workload]:
        """A live process reports; returns the workloads of which it now wants notably more or less."""
        self.demand.replace(session.wants if session.reported else {}, wants)
        return session.take_wants(wants)

    def _retire(self, session: Session) -> None:
        """It gets nothing more, and what it wanted nobody wants now."""
        if not session.retired:
            if session.reported:
                self.demand.replace(session.wants, {})
            session.retired, self._live = True, None

    def expire(self, now: MonotonicNs) -> Changes:
        """Forgets every lease whose time is over, and processes that have none left and do not report."""
        changes = Changes()
        for router_id, issued in self._inherited:
            if issued.expires_ns <= now:
                changes.workloads.update(issued.rates)
                self._gone.add(router_id)
                for workload, rate in issued.rates.items():
                    self._holdings.move(workload, -rate)
        self._inherited = [item for item in self._inherited if item[1].expires_ns > now]
        for key, session in list(self._sessions.items()):
            changes.workloads |= session.expire(now)
            if session.expires_ns <= now:
                changes.workloads |= session.release()
                changes.membership |= not session.retired
                self._retire(session)
                del self._sessions[key]
                self._gone.add(session.router_id)
        return changes

    def take_gone(self) -> tuple[str, ...]:
        """Routers of which nothing is left any more, each told once, sorted."""
        if not self._gone:
            return ()
        holding = {s.router_id for s in self._sessions.values() if s.holds_something or not s.retired}
        holding.update(owner for owner, _ in self._inherited)
        gone = self._gone - holding
        self._gone -= gone
        return tuple(sorted(gone))

    def held(self, workload: Workload) -> int:
        """What all processes together could be spending of a workload, milli-MU per minute."""
        return self._holdings.of(workload)

    def held_after(self, workload: Workload, shard: int, after_ns: int) -> int:
        """The part of it that runs on after that instant."""
        held = sum(session.shelf(shard).still(workload, after_ns) for session in self._sessions.values())
        inherited = (issued for _, issued in self._inherited if issued.expires_ns > after_ns)
        return held + sum(issued.rates.get(workload, 0) for issued in inherited)

    def held_by_the_gone(self, workload: Workload, shard: int) -> int:
        """The part of it that no live process holds and that only expiry frees."""
        if len(self.live()) == len(self._sessions) and not self._inherited:
            return 0
        return self.held(workload) - sum(session.shelf(shard).spendable.get(workload, 0) for session in self.live())

    def held_by_router(self, router_id: str, shard: int) -> dict[Workload, int]:
        """What all processes of one router together could be spending of a shard's workloads."""
        total: dict[Workload, int] = {}
        for session in self._of(router_id):
            for workload, rate in session.shelf(shard).spendable.items():
                total[workload] = total.get(workload, 0) + rate
        for owner, issued in self._inherited:
            for workload, rate in issued.rates.items() if owner == router_id else ():
                total[workload] = total.get(workload, 0) + rate
        return total

    def _of(self, router_id: str) -> Iterator[Session]:
        return (session for session in self._sessions.values() if session.router_id == router_id)
