"""Asking many routers at once what they decided about a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import grpc.aio

from common.logs import get_logger
from common.rpc import channel
from fairlead.errors import NotFoundError, from_rpc_error
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc

log = get_logger(__name__)

ROUTER_TIMEOUT_S: Final = 2.0
"""Longest wait for one router, seconds: a decision is looked up in memory, and somebody waits."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What routers answered."""

    decisions: tuple[decision_pb2.Decision, ...]
    """Newest first."""
    silent_router_ids: tuple[str, ...]
    """Routers that could not be asked, sorted."""
    memory: str
    """How much a router remembers, in the words of one that remembered nothing; empty where none said so."""


async def collect_decisions(
    routers: Mapping[str, str], request: decision_pb2.GetDecisionRequest, token: str
) -> Collected:
    """Asks every router at once; one that does not answer in ROUTER_TIMEOUT_S is silent.

    Args:
        routers: host:port of each by its id.
        request: What to ask.
        token: The platform's own, from `platform_token`.
    """
    metadata = (("authorization", f"Platform {token}"),)
    decisions: list[decision_pb2.Decision] = []
    silent: list[str] = []
    memory: list[str] = []

    async def ask(router_id: str, address: str) -> None:
        async with channel(address) as opened:
            try:
                answer = await decision_pb2_grpc.DecisionServiceStub(opened).GetDecision(
                    request, timeout=ROUTER_TIMEOUT_S, metadata=metadata
                )
                decisions.extend(answer.decisions)
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                if isinstance(error, NotFoundError):
                    memory.append(error.message)
                else:
                    silent.append(router_id)
                    log.warning("router does not tell its decisions", router=router_id, error=error.message)

    await asyncio.gather(*(ask(router_id, address) for router_id, address in routers.items()))
    decisions.sort(key=lambda decision: decision.arrive_time.ToNanoseconds(), reverse=True)
    return Collected(tuple(decisions), tuple(sorted(silent)), min(memory, default=""))
