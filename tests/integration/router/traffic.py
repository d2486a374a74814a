"""What the router's integration tests share."""

from __future__ import annotations

from typing import Any

import grpc.aio

from fairlead.inference.v1 import inference_pb2 as pb
from tests.integration.router.processes import AUTH, MODEL, Platform, Process, RouterProcess


def request(text: str = "Tell me a story", tokens: int = 16, **fields: object) -> pb.GenerateRequest:
    """A greedy request that runs to its limit."""
    sampling = pb.SamplingParameters(max_tokens=tokens, ignore_end_token=True, temperature=0.0)
    return pb.GenerateRequest(model=MODEL, prompt=text, sampling=sampling, **fields)  # type: ignore[arg-type]


async def generated(router: RouterProcess, tokens: int = 4) -> bool:
    """Whether a request is answered."""
    return len((await router.stub.Generate(request(tokens=tokens), metadata=AUTH, timeout=10)).text) > 0


async def first(
    call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.StreamGenerateResponse],
) -> pb.StreamGenerateResponse:
    """The first message of a stream."""
    message = await call.read()
    assert isinstance(message, pb.StreamGenerateResponse)
    return message


async def rest(
    call: grpc.aio.UnaryStreamCall[Any, pb.StreamGenerateResponse],
) -> list[pb.StreamGenerateResponse]:
    """The messages of a stream that are left."""
    messages = []
    while isinstance(message := await call.read(), pb.StreamGenerateResponse):
        messages.append(message)
    return messages


async def books(router: RouterProcess) -> tuple[float, float]:
    """Requests received and finished."""
    received = await router.metric("fairlead_router_requests_received_total")
    finished = await router.metric("fairlead_router_requests_finished_total")
    return received, finished


def agents(world: Platform) -> list[Process]:
    """The replicas' processes."""
    return [process for process in world.processes if process.name.startswith("agent")]


async def serving_agent(world: Platform, replica_id: str) -> Process:
    """The process behind a replica id."""
    record = next(each for each in await world.replicas() if each.replica_id == replica_id)
    return next(process for process in agents(world) if process.pid == record.agent_pid)
