"""The replicas a router knows, and what it believes of each.

Two sources speak about a replica: its record in the store, and the load stream from its agent. The stream is the truth
about life: a record that vanished because the store was away stays usable while its agent keeps reporting, and a record
that is still listed is doubtful once its agent has fallen silent.

    stream        record listed          record gone
    up            what the agent says    what the agent says
    untried       what the record says   forgotten
    silent        doubtful               forgotten
    refused       closed                 forgotten
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from data_plane.router.core.candidate import Candidate, Health
from data_plane.router.core.loads import ReplicaLoad, Report
from data_plane.router.core.pool import Pool, choose_pool
from data_plane.router.core.prefix_index import PrefixIndex
from fairlead.engine.v1 import engine_pb2

_NS_PER_S: Final = 1_000_000_000

REPORT_STALE_S: Final = 5.0
"""Agents report every second; five missed reports are a silence, not a hiccup of a busy machine."""

UNTRIED_GRACE_S: Final = 3.0
"""A replica that was just discovered is believed this long before its first report."""

_STATE_HEALTH: Final[dict[int, Health]] = {
    engine_pb2.REPLICA_STATE_READY: Health.READY,
    engine_pb2.REPLICA_STATE_UNHEALTHY: Health.DOUBTFUL,
}


class Link(enum.Enum):
    """The load stream of a replica."""

    UNTRIED = "untried"
    """Not connected yet."""
    UP = "up"
    """Reports arrive."""
    SILENT = "silent"
    """It broke or nobody answers: the replica or the network."""
    REFUSED = "refused"
    """Nothing listens at its address: the process is gone."""


class Room(enum.Enum):
    """Whether a workload's replicas take another batch request."""

    OPEN = "open"
    """At least one may."""
    PROBE = "probe"
    """All said that they are full, and the time to ask one of them again has come."""
    NONE = "none"
    """None takes requests, or all are full."""


# Looking a member up on an enum class costs more than the rest of a comparison, and health is asked per replica and
# request.
_UP: Final = Link.UP
_READY: Final = Health.READY
_SAYS_READY: Final = engine_pb2.REPLICA_STATE_READY
_DOUBTFUL: Final = Health.DOUBTFUL
_CLOSED: Final = Health.CLOSED
_STALE_NS: Final = int(REPORT_STALE_S * _NS_PER_S)
_GRACE_NS: Final = int(UNTRIED_GRACE_S * _NS_PER_S)

# Subsets whose pools are kept per model. There is one per tenant at most; past this all are made anew.
_POOLS_MAX: Final = 4096


@dataclass
class Member:
    """One known replica.

    Attributes:
        record: As last written to the store.
        load: Its load as this router knows it.
        known_ns: Since when it is known.
        engine: What it runs, "engine/version/hardware".
        blind: Requests go past its agent.
        listed: Whether the store lists it now.
        link: Its load stream.
        state: What the agent last said, or 0 before its first report.
        heard_ns: When the last report arrived.
        failed_ns: When a request last failed on it; it is doubtful until a later report.
        full_until_ns: Until when it need not be asked again, having said that its queue is full; 0 once it has served
            a batch request that was sent after that.
    """

    record: engine_pb2.Replica
    load: ReplicaLoad
    known_ns: int
    engine: str = ""
    blind: bool = False
    listed: bool = True
    link: Link = Link.UNTRIED
    state: int = 0
    heard_ns: int = 0
    failed_ns: int = 0
    full_until_ns: int = 0


class _Model:
    """The replicas of one model, and the pools made of them.

    Attributes:
        members: Its replicas, by id.
        prefixes: What their caches hold.
        pools: Candidates of the subsets that were asked for, by the subset's identity; each keeps its subset alive.
        changed: Members whose load is to be settled before anybody looks at it.
        doubt_ns: The first moment at which time alone may change somebody's health.
        judged_ns: When everybody's health was last judged; earlier moments come only where time goes backwards.
    """

    __slots__ = ("changed", "doubt_ns", "judged_ns", "members", "pools", "prefixes")

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.prefixes = PrefixIndex()
        self.changed: list[ReplicaLoad] = []
        self.pools: dict[int, tuple[Sequence[str], Pool]] = {}
        self.doubt_ns = 0
        self.judged_ns = 0


class Fleet:
    """All replicas of all models this router knows."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._by_model: dict[str, _Model] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def get(self, replica_id: str) -> Member | None:
        """The replica, if it is known."""
        return self._members.get(replica_id)

    def enlist(self, record: engine_pb2.Replica, now_ns: int) -> None:
        """The store lists a replica (again, or with a new record)."""
        member = self._members.get(record.replica_id)
        if member is not None and member.record.model_id != record.model_id:
            self._forget(member)
            member = None
        if member is None:
            member = Member(record, ReplicaLoad(record.replica_id), now_ns)
            self._members[record.replica_id] = member
            model = self._by_model.setdefault(record.model_id, _Model())
            member.load.changed = model.changed
            model.members[record.replica_id] = member
            model.pools.clear()
        member.record = record
        member.engine = f"{record.engine}/{record.engine_version}/{record.hardware}"
        member.blind = bool(record.dialect)
        member.listed = True
        member.load.serve(record.capacity_milli_mu_per_minute)
        self._keep_prefixes(member)
        self._judge(member, now_ns)

    def delist(self, replica_id: str, now_ns: int) -> None:
        """The store no longer lists a replica."""
        member = self._members.get(replica_id)
        if member is not None:
            member.listed = False
            self._forget_if_gone(member, now_ns)

    def report(self, replica_id: str, report: Report, state: int, now_ns: int) -> Member | None:
        """A report arrived, on the load stream or with an answer.

        Args:
            replica_id: From whom.
            report: The load.
            state: engine.v1.ReplicaState.
            now_ns: When it arrived.

        Returns:
            The replica, if it is known.
        """
        member = self._members.get(replica_id)
        if member is None:
            return None
        load = member.load
        if load.report(report.blind() if member.blind else report, now_ns):
            # Who is ready and says so again is believed a while longer; nothing else about its health changes.
            again = state == member.state == _SAYS_READY and load.health is _READY and member.link is _UP
            again = again and member.heard_ns <= now_ns >= member.failed_ns
            member.state, member.heard_ns = state, now_ns
            if not again:
                self._judge(member, now_ns)
        return member

    def link(self, replica_id: str, link: Link, now_ns: int) -> None:
        """The load stream of a replica came up or went down."""
        member = self._members.get(replica_id)
        if member is not None:
            member.link = link
            self._judge(member, now_ns)
            self._forget_if_gone(member, now_ns)

    def failed(self, replica_id: str, now_ns: int) -> None:
        """A request failed on a replica in a way that casts doubt on it."""
        member = self._members.get(replica_id)
        if member is not None:
            member.failed_ns = now_ns
            self._judge(member, now_ns)

    def filled(self, replica_id: str, until_ns: int) -> None:
        """A replica said that its queue is full.

        Args:
            replica_id: The replica.
            until_ns: Until when it need not be asked again.
        """
        member = self._members.get(replica_id)
        if member is not None:
            member.full_until_ns = max(member.full_until_ns, until_ns)

    def served(self, replica_id: str, sent_ns: int) -> None:
        """A replica has begun to answer a batch request: it has room, unless it said later that it is full.

        Args:
            replica_id: The replica.
            sent_ns: When the request was sent.
        """
        member = self._members.get(replica_id)
        if member is not None and sent_ns >= member.full_until_ns:
            member.full_until_ns = 0

    def sweep(self, now_ns: int) -> None:
        """Forgets unlisted replicas whose streams have fallen silent. To be called about once a second."""
        for member in list(self._members.values()):
            self._forget_if_gone(member, now_ns)

    def health(self, member: Member, now_ns: int) -> Health:
        """What the router believes of a replica."""
        link = member.link
        if link is _UP:
            if member.state == _SAYS_READY:
                silent = now_ns - member.heard_ns > _STALE_NS
                return _DOUBTFUL if silent or member.failed_ns > member.heard_ns else _READY
            return _STATE_HEALTH.get(member.state or member.record.state, _CLOSED)
        if link is Link.REFUSED:
            return _CLOSED
        believed = _STATE_HEALTH.get(member.state or member.record.state, _CLOSED)
        if believed is not _READY:
            return believed
        fresh = link is Link.UNTRIED and now_ns - member.known_ns <= _GRACE_NS
        return _READY if fresh else _DOUBTFUL

    def candidates(self, model_id: str, subset: Sequence[str], now_ns: int) -> Pool:
        """The replicas a workload may use, as policies want them. They go on changing with the fleet: use them at once.

        Args:
            model_id: The model.
            subset: Replica ids of the workload's assignment; empty where there is none.
            now_ns: Monotonic now.
        """
        model = self._by_model.get(model_id)
        if model is None:
            return Pool(())
        if not model.judged_ns <= now_ns < model.doubt_ns:
            self._judge_all(model, now_ns)
        if model.changed:
            for load in model.changed:
                load.settle()
            model.changed.clear()
        kept = model.pools.get(id(subset))
        if kept is not None and kept[0] is subset:
            kept[1].age(now_ns)
            return kept[1]
        members = model.members
        chosen = [members[replica_id].load for replica_id in choose_pool(subset, members)]
        pool = Pool(chosen, model.prefixes if any(each.cache_bit for each in chosen) else None)
        if isinstance(subset, tuple):
            if len(model.pools) >= _POOLS_MAX:
                model.pools.clear()
            model.pools[id(subset)] = (subset, pool)
        pool.age(now_ns)
        return pool

    def prefixes(self, model_id: str) -> PrefixIndex | None:
        """What the caches of a model's replicas hold; None where no replica keeps prefixes."""
        model = self._by_model.get(model_id)
        return model.prefixes if model is not None and model.prefixes.replicas else None

    def room(self, model_id: str, subset: Sequence[str], now_ns: int) -> Room:
        """Whether any replica takes batch requests of a workload now; arguments as in `candidates`."""
        marks = [self._members[each.replica_id].full_until_ns for each in self._usable(model_id, subset, now_ns)]
        if 0 in marks:
            return Room.OPEN
        return Room.PROBE if marks and min(marks) <= now_ns else Room.NONE

    def full(self, model_id: str, subset: Sequence[str], now_ns: int) -> set[str]:
        """The replicas that batch need not ask now, because they are full; arguments as in `candidates`."""
        ids = [each.replica_id for each in self._usable(model_id, subset, now_ns)]
        return {replica_id for replica_id in ids if self._members[replica_id].full_until_ns > now_ns}

    def count(self, model_id: str, now_ns: int) -> dict[Health, int]:
        """Known replicas of a model by what is believed of them."""
        counts = dict.fromkeys(Health, 0)
        model = self._by_model.get(model_id)
        for member in model.members.values() if model is not None else ():
            counts[self.health(member, now_ns)] += 1
        return counts

    def _usable(self, model_id: str, subset: Sequence[str], now_ns: int) -> Sequence[Candidate]:
        return self.candidates(model_id, subset, now_ns).eligible

    def _judge(self, member: Member, now_ns: int) -> None:
        """Keeps what policies see of a replica's health current, and notes until when it holds without further news."""
        health, load, model = self.health(member, now_ns), member.load, self._by_model.get(member.record.model_id)
        if model is None:
            return
        if health is not load.health:
            load.health = health
            model.pools.clear()
        if health is _READY:
            begin_ns, lasts_ns = (member.heard_ns, _STALE_NS) if member.link is _UP else (member.known_ns, _GRACE_NS)
            model.doubt_ns = min(model.doubt_ns, begin_ns + lasts_ns + 1)

    def _judge_all(self, model: _Model, now_ns: int) -> None:
        model.doubt_ns, model.judged_ns = now_ns + _STALE_NS, now_ns
        for member in model.members.values():
            self._judge(member, now_ns)

    def _keep_prefixes(self, member: Member) -> None:
        """Keeps a replica's cache in the index, or no longer."""
        record, load = member.record, member.load
        model = self._by_model[record.model_id]
        if record.prefix_cache == (load.prefixes is not None):
            return
        if record.prefix_cache:
            load.prefixes, load.cache_bit = model.prefixes, model.prefixes.join(record.replica_id)
            model.prefixes.resize(record.replica_id, load.kv_capacity_tokens)
        else:
            load.prefixes, load.cache_bit = None, 0
            model.prefixes.leave(record.replica_id)
        model.pools.clear()

    def _forget_if_gone(self, member: Member, now_ns: int) -> None:
        alive = member.link is Link.UP and now_ns - member.heard_ns <= REPORT_STALE_S * _NS_PER_S
        if member.listed or alive:
            return
        self._forget(member)

    def _forget(self, member: Member) -> None:
        replica_id, model_id = member.record.replica_id, member.record.model_id
        self._members.pop(replica_id, None)
        model = self._by_model.get(model_id)
        if model is not None:
            model.members.pop(replica_id, None)
            model.prefixes.leave(replica_id)
            model.pools.clear()
            if not model.members:
                del self._by_model[model_id]
