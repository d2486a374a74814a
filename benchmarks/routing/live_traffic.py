"""Steady small requests of every tenant, each router in turn, in sessions; what became of them, and who served them."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Final, NamedTuple

import grpc.aio

from benchmarks.routing.live_site import MODEL, ROUTERS, TENANTS, Site
from common.shard_map import shard_key
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc, inference_pb2_grpc
from fairlead.inference.v1 import inference_pb2 as pb

PER_S: Final = 30.0
"""Requests a second: little, because what is measured is where they go and two cores carry all of it."""
SESSIONS: Final = 50
"""Of each tenant."""
_TOKENS: Final = 4
_TIMEOUT_S: Final = 20.0
_LATE_S: Final = 1.0


class Sent(NamedTuple):
    """One request.

    Attributes:
        tenant: Whose.
        key: Where it lies in the key space.
        router: Number of the router it was sent to.
        sent_s: When, monotonic seconds.
        replica_id: Who answered; empty where it failed.
        request_id: Its id.
        error: Why it failed, or empty.
    """

    tenant: str
    key: int
    router: int
    sent_s: float
    replica_id: str
    request_id: str
    error: str


class Traffic:
    """Requests for as long as the context is open; none is sent a second time.

    Args:
        site: Where to.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._stubs = [inference_pb2_grpc.InferenceServiceStub(site.router(number)) for number in range(ROUTERS)]
        self._sending: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.sent: list[Sent] = []

    async def __aenter__(self) -> Traffic:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task, *self._sending], timeout=_TIMEOUT_S)

    def since(self, mark_s: float) -> list[Sent]:
        """What was sent after a moment and has ended."""
        return [each for each in self.sent if each.sent_s >= mark_s]

    async def explain(self, sent: Sent) -> decision_pb2.Decision | None:
        """What its router remembers of a request; None where it does not."""
        request = decision_pb2.GetDecisionRequest(request_id=sent.request_id, tenant_id=sent.tenant)
        try:
            answer = await decision_pb2_grpc.DecisionServiceStub(self._site.router(sent.router)).GetDecision(
                request, metadata=self._site.platform, timeout=_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return None
        return answer.decisions[0] if answer.decisions else None

    async def _run(self) -> None:
        number, due_s = 0, time.monotonic()
        while True:
            due_s = max(due_s + 1 / PER_S, time.monotonic() - _LATE_S)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            task = asyncio.create_task(self._send(number))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
            number += 1

    async def _send(self, number: int) -> None:
        router, turn = number % ROUTERS, number // ROUTERS
        tenant = TENANTS[turn % len(TENANTS)]
        session = f"session-{turn // len(TENANTS) % SESSIONS}"
        key, sent_s = shard_key(tenant, session), time.monotonic()
        request_id = f"bench-{sent_s:.6f}-{number}"
        request = pb.GenerateRequest(
            model=MODEL.model_id,
            prompt=f"{tenant} {session}: go on",
            sampling=pb.SamplingParameters(max_tokens=_TOKENS, ignore_end_token=True, temperature=0.0),
            session_id=session,
            request_id=request_id,
        )
        metadata = (("authorization", f"Bearer {self._site.keys[tenant]}"),)
        try:
            answer = await self._stubs[router].Generate(request, metadata=metadata, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            what = f"{error.code().name}: {error.details()}"
            self.sent.append(Sent(tenant, key, router, sent_s, "", request_id, what))
        else:
            self.sent.append(Sent(tenant, key, router, sent_s, answer.replica_id, request_id, ""))
