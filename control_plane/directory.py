"""What runs: replicas, and the services as they registered themselves."""

from __future__ import annotations

import grpc.aio

from common import keys
from common.rpc import channel
from control_plane.core import check
from control_plane.records import Tables
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import from_rpc_error

_DRAIN_TIMEOUT_S = 5.0


class Directory:
    """Reads what runs, and drains replicas.

    Args:
        tables: The records.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def replicas(self, request: admin_pb2.ListReplicasRequest) -> admin_pb2.ListReplicasResponse:
        """See AdminService."""
        if request.model_id:
            check.model_id(request.model_id)
        records = [stored.record for stored in await self._tables.replicas.list()]
        wanted = [record for record in records if request.model_id in ("", record.model_id)]
        return admin_pb2.ListReplicasResponse(replicas=sorted(wanted, key=lambda r: (r.model_id, r.replica_id)))

    async def drain(self, request: admin_pb2.DrainReplicaRequest) -> engine_pb2.Replica:
        """See AdminService: the replica's own agent does it, and says so in its record."""
        if not request.replica_id or "/" in request.replica_id:
            raise self._tables.replicas.missing(request.replica_id[:80])
        key = keys.replica(request.replica_id)
        replica = (await self._tables.replicas.require(key)).record
        if request.validate_only:
            return replica
        async with channel(replica.address) as agent:
            try:
                await engine_pb2_grpc.EngineServiceStub(agent).Drain(
                    engine_pb2.DrainRequest(replica_id=replica.replica_id), timeout=_DRAIN_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as failure:
                raise from_rpc_error(failure) from failure
        replica.state = engine_pb2.REPLICA_STATE_DRAINING
        return replica

    async def services(self, request: admin_pb2.ListServicesRequest) -> admin_pb2.ListServicesResponse:
        """See AdminService. The election decides who leads; a process's own record may lag a moment behind."""
        leaders = {stored.record.service: stored for stored in await self._tables.leaders.list()}
        services = []
        for stored in await self._tables.services.list():
            record = stored.record
            leader = leaders.get(record.service)
            record.leader = leader is not None and leader.record.instance_id == record.instance_id
            record.epoch = leader.entry.create_revision if leader is not None and record.leader else 0
            services.append(record)
        return admin_pb2.ListServicesResponse(services=sorted(services, key=lambda s: (s.service, s.instance_id)))
