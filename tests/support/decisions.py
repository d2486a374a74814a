"""Decisions and a router that tells them: the real protocol on a real port, nothing behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from common.platform_token import is_platform, platform_token
from fairlead.errors import Reason, UnauthenticatedError
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc, inference_pb2
from tests.support.fake_platform.explain import found
from tests.support.fake_platform.router import abort


def duration(seconds: float) -> Duration:
    """A duration in seconds."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def bucket(**fields: Any) -> decision_pb2.BucketState:
    """60 MU/min over all routers, a third of it leased here, nearly used up."""
    state = decision_pb2.BucketState(
        quota_milli_mu_per_minute=60_000,
        rate_milli_mu_per_minute=20_000,
        burst_milli_mu=10_000,
        level_milli_mu=1_100,
        held_milli_mu=2_500,
        open_holds=2,
    )
    state.MergeFrom(decision_pb2.BucketState(**fields))
    return state


def refused(request_id: str, tenant_id: str = "alpha", *, arrive_s: float = 1_795_000_000.25) -> decision_pb2.Decision:
    """A request that found its quota used up."""
    decision = decision_pb2.Decision(
        request_id=request_id,
        tenant_id=tenant_id,
        model_id="tiny",
        router_id="router-1",
        duration=duration(0.0004),
        outcome=decision_pb2.OUTCOME_REFUSED,
        reason="QUOTA_USED_UP",
        message="the request is estimated at 3200 milli-MU, 1100 of the quota are left; it refills continuously",
        retry_delay=duration(6.3),
        priority=inference_pb2.PRIORITY_INTERACTIVE,
        profile_id="tiny/h100/1",
        estimated_usage=inference_pb2.Usage(input_tokens=120, output_tokens=300),
        estimated_prefill_milli_mu=200,
        estimated_decode_milli_mu=3_000,
        bucket=bucket(),
    )
    decision.arrive_time.FromNanoseconds(round(arrive_s * 1e9))
    return decision


def completed(
    request_id: str, tenant_id: str = "alpha", *, arrive_s: float = 1_795_000_000.25
) -> decision_pb2.Decision:
    """A request that was answered by its second replica."""
    decision = refused(request_id, tenant_id, arrive_s=arrive_s)
    for field in ("reason", "message", "retry_delay"):
        decision.ClearField(field)  # type: ignore[arg-type]  # the stubs want literals
    decision.MergeFrom(
        decision_pb2.Decision(
            outcome=decision_pb2.OUTCOME_COMPLETED,
            duration=duration(2.31),
            session_id="chat-7",
            held_milli_mu=3_900,
            settled_usage=inference_pb2.Usage(input_tokens=128, cached_input_tokens=64, output_tokens=340),
            settled_prefill_milli_mu=150,
            settled_decode_milli_mu=3_400,
            bucket=bucket(level_milli_mu=9_000),
        )
    )
    first = decision.attempts.add(
        replica_id="tiny-r2",
        start_offset=duration(0.0012),
        candidate_count=3,
        sticky=True,
        failure_reason="REPLICA_LOST",
    )
    second = decision.attempts.add(
        replica_id="tiny-r1", start_offset=duration(0.4), candidate_count=3, first_token_offset=duration(0.12)
    )
    scores = (("tiny-r1", 0.004), ("tiny-r3", 0.0125), ("tiny-r2", 0.02))
    for attempt in (first, second):
        for replica_id, score in scores:
            attempt.candidates.add(
                replica_id=replica_id,
                score=score,
                pending_prefill_milli_mu=200,
                decode_milli_mu=900,
                capacity_milli_mu_per_minute=100_000,
                health="ready",
            )
    return decision


class TellingRouter(decision_pb2_grpc.DecisionServiceServicer):
    """Tells its decisions to the platform; knobs for what goes wrong."""

    def __init__(self, pepper: bytes, *decisions: decision_pb2.Decision) -> None:
        self._token = platform_token(pepper)
        self.decisions = list(decisions)
        self.never_answers = False
        self.address = ""

    async def GetDecision(self, request: Any, context: Any) -> decision_pb2.GetDecisionResponse:
        if not is_platform(dict(context.invocation_metadata()).get("authorization"), self._token):
            await abort(context, UnauthenticatedError("not the platform", reason=Reason.UNKNOWN_KEY))
        if self.never_answers:
            await asyncio.Event().wait()
        return await found(self.decisions, request, request.tenant_id, context)


@asynccontextmanager
async def serving(*routers: TellingRouter) -> AsyncIterator[None]:
    """Serves each router on a free port of 127.0.0.1."""
    servers = []
    for router in routers:
        server = grpc.aio.server()
        decision_pb2_grpc.add_DecisionServiceServicer_to_server(router, server)
        router.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
    try:
        yield
    finally:
        for server in servers:
            await server.stop(0)
