"""Which of several replicas has the least to do, asked of their agents."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final

import grpc.aio

from common.rpc import channel
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc

_TIMEOUT_S: Final = 2.0
# Looking further costs more than a somewhat busier replica does.
_ASKED_MAX: Final = 16


async def least_busy(replicas: Sequence[engine_pb2.Replica]) -> engine_pb2.Replica:
    """The replica with the fewest requests, waiting and running; the first of equals.

    Args:
        replicas: At least one. One that does not answer in time is the last choice.
    """
    if len(replicas) == 1:
        return replicas[0]
    asked = replicas[:_ASKED_MAX]
    requests = await asyncio.gather(*(_requests(replica) for replica in asked))
    return asked[requests.index(min(requests))]


async def _requests(replica: engine_pb2.Replica) -> float:
    async with channel(replica.address) as agent:
        call = engine_pb2_grpc.EngineServiceStub(agent).WatchLoad(
            engine_pb2.WatchLoadRequest(router_id="control-plane"), timeout=_TIMEOUT_S
        )
        try:
            report = await call.read()
        except grpc.aio.AioRpcError:
            return math.inf
        finally:
            call.cancel()
    if not isinstance(report, engine_pb2.LoadReport):
        return math.inf
    return report.queued_requests + report.running_requests
