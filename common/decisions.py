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


KEPT_MAX: Final = "decisions_kept_max"
"""Metadata of a router's NotFoundError: the requests that it keeps at most."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What routers answered."""

    decisions: tuple[decision_pb2.Decision, ...]
    """Newest first."""
    silent_router_ids: tuple[str, ...]
    """Routers that could not be asked, sorted."""
    kept_max: int
    """Requests that a router which remembered nothing keeps; 0 where none said so."""


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
    kept: list[int] = []

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
                    kept.append(int(error.metadata.get(KEPT_MAX, 0)))
                else:
                    silent.append(router_id)
                    log.warning("router does not tell its decisions", router=router_id, error=error.message)

    await asyncio.gather(*(ask(router_id, address) for router_id, address in routers.items()))
    decisions.sort(key=lambda decision: decision.arrive_time.ToNanoseconds(), reverse=True)
    return Collected(tuple(decisions), tuple(sorted(silent)), max(kept, default=0))


def nothing_remembered(request_id: str, routers: int, found: Collected) -> NotFoundError:
    """The error for a request that no router remembers.

    Args:
        request_id: The request.
        routers: How many were asked.
        found: What they said.
    """
    who = f"none of {routers} routers remembers" if routers > 1 else "the router does not remember"
    kept = f"; each keeps its newest {found.kept_max:,} requests" if found.kept_max else ""
    silent = ", ".join(found.silent_router_ids)
    missing = f"; {silent} could not be asked and may know it" if silent else ""
    metadata = {KEPT_MAX: str(found.kept_max)} if found.kept_max else {}
    if silent:
        metadata["silent_router_ids"] = silent
    return NotFoundError(f"{who} request {request_id[:128]!r}{kept}{missing}", metadata=metadata)
