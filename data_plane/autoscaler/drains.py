"""Tells replica agents to drain, over their API."""

from __future__ import annotations

import grpc.aio

from common.rpc import channel
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import from_rpc_error

TIMEOUT_S = 3.0


async def drain(replica: engine_pb2.Replica) -> int:
    """Tells a replica to take no new requests.

    Args:
        replica: Its record; the agent at its address refuses when it is another one.

    Returns:
        Requests it still serves. Calling again changes nothing and tells the number of that moment.

    Raises:
        FairleadError: It could not be told.
    """
    async with channel(replica.address) as connection:
        stub = engine_pb2_grpc.EngineServiceStub(connection)
        request = engine_pb2.DrainRequest(replica_id=replica.replica_id)
        try:
            response: engine_pb2.DrainResponse = await stub.Drain(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
    return response.requests_in_flight
