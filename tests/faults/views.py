"""Whether a router sees what was written to the store."""

from __future__ import annotations

import time
from collections.abc import Sequence

import grpc.aio

from fairlead.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.faults.processes import Service
from tests.support.waiting import eventually

HEAL_S = 30.0
"""A view that missed something is right again within this long: the mirrors list anew that often."""


async def knows(router: Service, key: str) -> bool:
    """Whether a router has heard of an API key."""
    async with grpc.aio.insecure_channel(router.grpc_address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.ListModels(
            inference_pb2.ListModelsRequest(), metadata=(("authorization", f"Bearer {key}"),), timeout=3
        )
        return await call.code() is grpc.StatusCode.OK


async def heals(routers: Sequence[Service], key: str, *, within_s: float) -> float:
    """Waits until every router knows a key that was just made; returns how long it took, seconds."""
    began_s = time.monotonic()
    for router in routers:
        left_s = began_s + within_s - time.monotonic()
        await eventually(lambda router=router: knows(router, key), left_s, f"{router.name} sees what was written")
    return time.monotonic() - began_s
