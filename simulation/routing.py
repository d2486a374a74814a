"""Which replica a router sends a request to, by the product's policies, and where requests wait for one with room.

What `data_plane/router`'s routing and waiting desk do around a gRPC stream, around a `Flight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Final, NamedTuple

from common.shard_map import ShardMap, tenant_keys
from data_plane.router.core.candidate import Health
from data_plane.router.core.deadline import Sent, is_hopeless, soonest_first_token_s
from data_plane.router.core.fleet import Fleet, Member
from data_plane.router.core.holds import BucketKey
from data_plane.router.core.loads import Dispatch
from data_plane.router.core.policies.policy import Ask, Policy, has_room
from data_plane.router.core.policies.registry import make_policy
from data_plane.router.core.pool import Pool
from data_plane.router.core.waiting_group import End, Place, Subset
from data_plane.router.core.waiting_line import WaitingLine, full
from engines.simulated.work import SchedulerLimits
from fairlead.errors import QuotaExceededError
from simulation.flight import Flight
from simulation.kernel import NS_PER_S, Loop

# How often lines are looked at while anybody waits: data_plane/router/waiting_desk.py.
_LOOK_S: Final = 0.02
_NS_PER_MINUTE: Final = 60 * NS_PER_S
# Interactive before batch, as in data_plane/router/routing.py; nothing of a simulation has the system's priority.
_INTERACTIVE, _BATCH = 1, 2
_PIECE_TOKENS: Final = SchedulerLimits().piece_tokens


class Chosen(NamedTuple):
    """A replica, with the request already counted on it.

    Attributes:
        member: The replica.
        dispatch: The request there.
        prefill_milli_mu: What its prompt costs beyond the replica's cache.
    """

    member: Member
    dispatch: Dispatch
    prefill_milli_mu: int


class TooLate(NamedTuple):
    """No replica can answer in time.

    Attributes:
        retry_after_s: When it may come back.
    """

    retry_after_s: float


class Nobody(NamedTuple):
    """No replica may be chosen."""


Found = Chosen | TooLate | Nobody | QuotaExceededError
"""What comes of looking for a replica; an error where too many wait for one already."""


class Routing:
    """Chooses replicas for one router.

    Args:
        loop: Virtual time.
        fleet: What the router knows of the replicas.
        policy: The policy's name.
        random: Its random stream.
        found: Told what came of looking, once for every `choose`.
    """

    def __init__(
        self, loop: Loop, fleet: Fleet, policy: str, random: Random, found: Callable[[Flight, Found], None]
    ) -> None:
        self._loop = loop
        self._fleet = fleet
        self._policy: Policy = make_policy(policy, random)
        self._found = found
        self._assignments: dict[str, ShardMap] = {}
        self._unions: dict[BucketKey, Subset] = {}
        self._lines: dict[str, WaitingLine[Found]] = {}
        self._waiting: dict[Place[Found], Flight] = {}
        self._places: dict[int, Place[Found]] = {}  # by the flight's number
        self._look_planned = False
        self._sent = Sent()

    def assign(self, assignment: ShardMap) -> None:
        """A newer assignment is in force."""
        model_id = assignment.model_id
        self._assignments[model_id] = assignment
        self._unions = {key: union for key, union in self._unions.items() if key[1] != model_id}
        line = self._lines.get(model_id)
        if line is not None and len(line):
            line.move(lambda place: self.subset(self._waiting[place]))
            self._look(line)

    def subset(self, flight: Flight) -> Subset:
        """The replicas assigned to a request; empty where there is no assignment."""
        assignment = self._assignments.get(flight.tenant.model_id)
        return assignment.subset(flight.shard_key) if assignment is not None else ()

    def subset_of(self, key: BucketKey) -> Subset:
        """The replicas of any of a tenant's requests, likewise."""
        tenant_id, model_id = key
        assignment = self._assignments.get(model_id)
        if assignment is None:
            return ()
        union = self._unions.get(key)
        if union is None:
            subsets = set(assignment.subsets(*tenant_keys(tenant_id)))
            union = subsets.pop() if len(subsets) == 1 else tuple(sorted(set().union(*subsets)))
            self._unions[key] = union
        return union

    def choose(self, flight: Flight) -> None:
        """Looks for a replica; `found` is told of it, at once unless the policy lets requests wait for room."""
        if not self._policy.waits_for_room:
            self._found(flight, self._take(flight, needs_room=False) or Nobody())
            return
        line = self._lines.get(flight.tenant.model_id)
        if line is None:
            line = self._lines[flight.tenant.model_id] = WaitingLine(serves=lambda found: isinstance(found, Chosen))
        taken = self._take(flight, needs_room=True) if not line.shared(self.subset(flight)) else None
        if taken is not None:
            self._found(flight, taken)
        else:
            self._enter(line, flight)

    def started(self, dispatch: Dispatch) -> None:
        """The first token came."""
        dispatch.load.started(dispatch, self._loop.now_ns)
        self._sent.remove(dispatch)

    def ended(self, dispatch: Dispatch) -> None:
        """The request left the replica, whatever became of it."""
        dispatch.load.ended(dispatch, self._loop.now_ns)
        self._sent.remove(dispatch)

    def leave(self, flight: Flight) -> None:
        """A request is given up; harmless where it does not wait."""
        place = self._places.pop(flight.number, None)
        if place is not None:
            del self._waiting[place]
            self._lines[flight.tenant.model_id].leave(place)

    def freed(self, member: Member) -> None:
        """A replica may have got room."""
        line = self._lines.get(member.record.model_id)
        if line is not None and len(line):
            load, replica_id = member.load, member.record.replica_id

            def worthwhile() -> bool:
                load.settle()
                return load.health is not Health.READY or has_room(load)

            now_ns = self._loop.now_ns
            self._told(line.look(self._take_place, now_ns, replica_id=replica_id, worthwhile=worthwhile))

    def _enter(self, line: WaitingLine[Found], flight: Flight) -> None:
        now_ns, tenant, cost = self._loop.now_ns, flight.tenant, flight.price.cost
        first = self._policy.pick(self._ask(flight, now_ns), self._pool(flight, now_ns))
        member = self._fleet.get(first.replica_id) if first is not None else None
        if first is None or member is None:
            self._found(flight, Nobody())
            return
        capacity = member.load.capacity_milli_mu_per_minute
        try:
            place = line.enter(
                tenant.id,
                self.subset(flight),
                rank=_rank(flight),
                weight=max(1, flight.weight),
                milli_mu=first.uncached_prefill_milli_mu + cost.decode_milli_mu,
                prefill_ns=first.uncached_prefill_milli_mu * _NS_PER_MINUTE // capacity,
                now_ns=now_ns,
                deadline_ns=flight.deadline_ns,
                excluded=frozenset(flight.excluded),
            )
        except QuotaExceededError as error:
            self._found(flight, error)
            return
        self._waiting[place], self._places[flight.number] = flight, place
        if place.displaced is not None:
            self._found(self._take_off(place.displaced), full(len(line)))
        self._told(line.look(self._take_place, now_ns, newcomer=place))
        self._plan()

    def _look(self, line: WaitingLine[Found]) -> None:
        self._told(line.look(self._take_place, self._loop.now_ns))

    def _told(self, ended: Iterable[Place[Found]]) -> None:
        for place in ended:
            flight = self._take_off(place)
            if place.end is End.LET_IN and place.granted is not None:
                self._found(flight, place.granted)
            # Who is late is ended by its own deadline.

    def _take_place(self, place: Place[Found]) -> Found | None:
        return self._take(self._waiting[place], needs_room=True)

    def _take_off(self, place: Place[Found]) -> Flight:
        flight = self._waiting.pop(place)
        self._places.pop(flight.number, None)
        return flight

    def _plan(self) -> None:
        if not self._look_planned and self._waiting:
            self._look_planned = True
            self._loop.after(_LOOK_S, self._regular)

    def _regular(self, _: object) -> None:
        self._look_planned = False
        for line in self._lines.values():
            if len(line):
                self._look(line)
        self._plan()

    def _take(self, flight: Flight, *, needs_room: bool) -> Found | None:
        """A replica for a request, or what is to be said of it; None where it shall wait for room."""
        now_ns = self._loop.now_ns
        pool, ask = self._pool(flight, now_ns), self._ask(flight, now_ns)
        full: list[str] = []
        if needs_room:
            open_ = pool.without(flight.excluded).eligible
            full = [each.replica_id for each in open_ if not has_room(each)]
            if full and len(full) == len(open_):
                return None
        pick = self._policy.pick(ask._replace(excluded=(*flight.excluded, *full)) if full else ask, pool)
        member = self._fleet.get(pick.replica_id) if pick is not None else None
        if pick is None or member is None:
            return Nobody()
        left_s = (flight.deadline_ns - now_ns) / NS_PER_S
        if is_hopeless(pick.expected_first_token_s, left_s):
            expected_s = soonest_first_token_s(ask, pool, self._sent, _rank(flight))
            if expected_s is not None and is_hopeless(expected_s, left_s):
                return TooLate(max(0.1, expected_s - left_s))
        prefill, decode = pick.uncached_prefill_milli_mu, flight.price.cost.decode_milli_mu
        dispatch = member.load.dispatch(prefill, decode, now_ns, flight.prefix)
        self._sent.add(dispatch, flight.tenant.id, _rank(flight))
        return Chosen(member, dispatch, prefill)

    def _pool(self, flight: Flight, now_ns: int) -> Pool:
        return self._fleet.candidates(flight.tenant.model_id, self.subset(flight), now_ns)

    def _ask(self, flight: Flight, now_ns: int) -> Ask:
        price = flight.price
        return Ask(
            price.cost.prefill_milli_mu,
            price.cost.decode_milli_mu,
            price.input_tokens,
            flight.prefix,
            _PIECE_TOKENS * price.input_tokens / flight.input_tokens if flight.prefix else 0.0,
            flight.session_id,
            flight.key or str(flight.number),
            flight.tenant.id,
            flight.excluded,
            0,
            now_ns,
        )


def _rank(flight: Flight) -> int:
    return _BATCH if flight.tenant.batch else _INTERACTIVE
