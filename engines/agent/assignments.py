"""The assignment of the replica's model, as far as this agent knows: it is kept whoever brought it, and passed on.

It comes from etcd, and from routers and the sharder that meet this agent (AssignmentService). The newest generation
wins, and nothing takes it away again: a replica is a place where a sharder that has lost its memory finds it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from common import keys
from common.logs import get_logger
from common.mirror import Mirror
from common.shard_map import Generation, ShardMap
from common.store import Store
from engines.agent.metrics import Misrouting
from engines.agent.notices import Notices
from fairlead.errors import InvalidArgumentError
from fairlead.sharding.v1 import sharding_pb2

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Held:
    message: sharding_pb2.Assignment
    shard_map: ShardMap


class AssignmentHolder:
    """Holds the newest assignment of one model.

    Args:
        store: Where the sharder writes it.
        model_id: The model this replica serves.
        replica_id: This replica.
        changed: Told of every newer assignment.
    """

    def __init__(self, store: Store, *, model_id: str, replica_id: str, changed: Notices) -> None:
        self._model_id = model_id
        self._replica_id = replica_id
        self._changed = changed
        self._held: _Held | None = None
        # The prefix of one model's key may begin another's: only what has nothing after it is this model.
        self._mirror: Mirror[_Held] = Mirror(store, keys.assignment(model_id), _decode)
        self._mirror.on_change(self._stored)

    @property
    def generation(self) -> Generation | None:
        """Age of the assignment held; None while there is none."""
        return None if self._held is None else self._held.shard_map.generation

    @property
    def names_replica(self) -> bool:
        """Whether the assignment held gives this replica anything to serve."""
        return self._held is not None and self._replica_id in self._held.shard_map.replica_ids

    async def run(self) -> None:
        """Follows the store until cancelled; while it is gone, what is held stays."""
        await self._mirror.run()

    async def released(self) -> None:
        """Returns once the assignment held does not name this replica."""
        with self._changed.listen() as changed:
            while self.names_replica:
                changed.clear()
                await changed.wait()

    def misrouting(self, shard_key: int, router_holds: Generation | None) -> Misrouting | None:
        """Why a request came here although its key is not assigned to this replica; None where it is.

        None also where this cannot be judged: this agent holds no assignment, or the router a newer one.

        Args:
            shard_key: Where the request lies; 0 where its router did not say.
            router_holds: The assignment it was routed by; None where its router had none.
        """
        if self._held is None or not shard_key:
            return None
        shard_map = self._held.shard_map
        if self._replica_id in shard_map.subset(shard_key):
            return None
        if router_holds is None:
            return Misrouting.NO_ASSIGNMENT
        if router_holds > shard_map.generation:
            return None
        return Misrouting.OVERFLOW if router_holds == shard_map.generation else Misrouting.STALE_ROUTER

    def exchange(self, request: sharding_pb2.ExchangeAssignmentsRequest) -> sharding_pb2.ExchangeAssignmentsResponse:
        """Meets another holder: each ends up with the newer one. Assignments of other models are not kept.

        Raises:
            InvalidArgumentError: An assignment of this model that was handed over is damaged; nothing was taken.
        """
        handed = [_read(each) for each in request.assignments if each.model_id == self._model_id]
        generations = [each.shard_map.generation for each in handed]
        if self._model_id in request.held:
            generations.append(Generation.of(request.held[self._model_id]))
        for each in handed:
            self._keep(each)
        theirs, mine = max(generations, default=Generation()), self.generation or Generation()
        response = sharding_pb2.ExchangeAssignmentsResponse()
        if self._held is not None and mine > theirs:
            response.assignments.append(self._held.message)
        if theirs > mine:
            response.wanted_model_ids.append(self._model_id)
        return response

    def _stored(self, key: str, held: _Held | None) -> None:
        if not key and held is not None and held.message.model_id == self._model_id:
            self._keep(held)

    def _keep(self, held: _Held) -> None:
        generation = held.shard_map.generation
        if self._held is None or generation > self._held.shard_map.generation:
            self._held = held
            log.info(
                "assignment",
                incarnation=generation.incarnation,
                number=generation.number,
                named=self.names_replica,
                reason=held.message.reason,
            )
            self._changed.notify()


def _decode(raw: bytes) -> _Held:
    return _read(sharding_pb2.Assignment.FromString(raw))


def _read(message: sharding_pb2.Assignment) -> _Held:
    shard_map = ShardMap(message)
    generation = shard_map.generation
    if not generation.sound:
        raise InvalidArgumentError(
            f"the assignment of {message.model_id!r} is damaged: its generation "
            f"({generation.incarnation}, {generation.number}) is out of range",
            field="assignment",
        )
    return _Held(message, shard_map)
