"""ShardingService: the assignments in force, with what the leading sharder knows of their load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from common import keys
from common.logs import get_logger
from common.rpc import LeaderClient
from common.shard_map import tenant_keys
from common.store import Store
from control_plane.assignment_messages import from_bytes
from control_plane.core import check
from control_plane.fleet_views import FleetViews
from control_plane.forward import ask
from control_plane.sharder import Sharder
from fairlead.errors import FairleadError
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc

log = get_logger(__name__)

# What people see does not wait for a leader that hangs.
_LEADER_TIMEOUT_S: Final = 1.0
_FORWARDED: Final = "fairlead-forwarded"


class ShardingService(sharding_pb2_grpc.ShardingServiceServicer):
    """Answers on every instance: assignments from the store, load from the leader.

    Args:
        store: Where assignments are.
        views: The fleet.
        sharder: This instance's.
        leader: Finds the leading instance.
    """

    def __init__(self, store: Store, views: FleetViews, sharder: Sharder, leader: LeaderClient) -> None:
        self._store = store
        self._views = views
        self._sharder = sharder
        self._leader = leader

    async def ListAssignments(
        self, request: sharding_pb2.ListAssignmentsRequest, context: Any
    ) -> sharding_pb2.ListAssignmentsResponse:
        """See ShardingService."""
        if request.model_id:
            check.model_id(request.model_id)
        if request.tenant_id:
            check.tenant_id(request.tenant_id)
        listing = await self._store.list(keys.ASSIGNMENTS)
        assignments = (from_bytes(entry.value) for entry in listing.entries)
        wanted = [each for each in assignments if each.model_id and request.model_id in ("", each.model_id)]
        answer = sharding_pb2.ListAssignmentsResponse(assignments=sorted(wanted, key=lambda each: each.model_id))
        if request.tenant_id:
            first_key, end_key = tenant_keys(request.tenant_id)
            answer.tenant_keys.first_key, answer.tenant_keys.last_key = first_key, end_key - 1
        answer.MergeFrom(await self._heat(request, answer.assignments, dict(context.invocation_metadata() or ())))
        return answer

    async def _heat(
        self,
        request: sharding_pb2.ListAssignmentsRequest,
        assignments: Iterable[sharding_pb2.Assignment],
        metadata: dict[str, str],
    ) -> sharding_pb2.ListAssignmentsResponse:
        if self._sharder.leads:
            return self._sharder.heat(request.model_id)
        if _FORWARDED not in metadata:
            # With the caller's own token: the leader checks it as this instance did.
            passed = (("authorization", metadata.get("authorization", "")), (_FORWARDED, "1"))
            try:
                stub = sharding_pb2_grpc.ShardingServiceStub(self._leader.channel())
                answer = await ask(lambda: stub.ListAssignments(request, timeout=_LEADER_TIMEOUT_S, metadata=passed))
            except FairleadError as error:
                log.info("the leading sharder cannot be asked", error=error.message)
            else:
                return sharding_pb2.ListAssignmentsResponse(replicas=answer.replicas, slices=answer.slices)
        placed = [heat for each in assignments for heat in self._placed(each)]
        return sharding_pb2.ListAssignmentsResponse(replicas=placed)

    def _placed(self, assignment: sharding_pb2.Assignment) -> list[sharding_pb2.ReplicaHeat]:
        """What an assignment expects of its replicas: each carries the load of its slices by its capacity."""
        registered = self._views.replicas.items
        ids = assignment.replica_ids
        capacities = [
            max(0, registered[each].capacity_milli_mu_per_minute) if each in registered else 0 for each in ids
        ]
        loads, slices = [0.0] * len(ids), [0] * len(ids)
        for each in assignment.slices:
            places = [place for place in each.replicas if place < len(ids)]
            capacity = sum(capacities[place] for place in places)
            for place in places:
                share = capacities[place] / capacity if capacity else 1 / len(places)
                loads[place] += each.load_milli_mu_per_minute * share
                slices[place] += 1
        return [
            sharding_pb2.ReplicaHeat(
                replica_id=replica_id,
                model_id=assignment.model_id,
                load_milli_mu_per_minute=round(load),
                capacity_milli_mu_per_minute=capacity,
                slices=count,
            )
            for replica_id, load, capacity, count in zip(ids, loads, capacities, slices, strict=True)
        ]
