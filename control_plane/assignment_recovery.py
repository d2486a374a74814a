"""What agents and routers still hold: asked by a leader that starts, or that learns of a newer assignment than its own.

Assignments outlive the store: every agent and router keeps the newest it met. A leader whose store was lost or set back
would otherwise hand out assignments that everybody refuses as old, and would move every tenant to do so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import grpc.aio

from common.logs import get_logger
from common.rpc import channel
from common.shard_map import Generation
from control_plane.assignment_messages import from_message
from control_plane.core.sharding.values import Placement
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc

log = get_logger(__name__)

HOLDER_TIMEOUT_S: Final = 1.0
"""Longest wait for one holder: it answers from memory."""

RECOVERED: Final = "taken from agents and routers: the store had an older assignment or none"
"""Why a recovered placement is written."""

# Who is asked while others answer already only hands over what is newer still.
_ASKED_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who may hold assignments.

    Attributes:
        name: For the log.
        address: host:port.
        is_router: Routers are asked with the platform's token.
    """

    name: str
    address: str
    is_router: bool = False


@dataclass(frozen=True, slots=True)
class Recovered:
    """What holders handed over.

    Attributes:
        placements: The newest of each model that is newer than what was held.
        answered: Names of the holders that answered.
        silent: Names of those that did not, in time or at all, or that there was no time to ask.
    """

    placements: Mapping[str, Placement]
    answered: frozenset[str]
    silent: frozenset[str]


class AssignmentRecovery:
    """Asks holders.

    Args:
        token: The platform's own, for routers.
        wait_s: Longest wait for all of them together, seconds.
    """

    def __init__(self, token: str, wait_s: float) -> None:
        self._metadata = (("authorization", f"Platform {token}"),)
        self._wait_s = wait_s

    async def ask(self, holders: Iterable[Holder], held: Mapping[str, Generation]) -> Recovered:
        """Asks every holder for what is newer than what is held; never raises.

        Routers come first: they hold every model's. Agents follow in an order of chance, so that no silent part of a
        large fleet keeps the others from being asked time after time.

        Args:
            holders: Whom to ask.
            held: Generations held, by model; a model that is missing is held by nobody here.
        """
        newest: dict[str, Generation] = dict(held)
        found: dict[str, Placement] = {}
        gate = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def one(holder: Holder) -> bool:
            async with gate, channel(holder.address) as opened:
                request = sharding_pb2.ExchangeAssignmentsRequest(
                    held={model_id: generation.message() for model_id, generation in newest.items()}
                )
                stub = sharding_pb2_grpc.AssignmentServiceStub(opened)
                metadata = self._metadata if holder.is_router else ()
                try:
                    answer = await stub.ExchangeAssignments(request, timeout=HOLDER_TIMEOUT_S, metadata=metadata)
                except grpc.aio.AioRpcError as failure:
                    log.info("holder of assignments not asked", holder=holder.name, error=failure.code().name)
                    return False
            for message in answer.assignments:
                if Generation.of(message.generation) > newest.get(message.model_id, Generation()):
                    placement = from_message(message)
                    if placement is not None:
                        newest[message.model_id] = placement.generation
                        found[message.model_id] = placement
            return True

        order = list(holders)
        random.shuffle(order)
        order.sort(key=lambda holder: not holder.is_router)
        tasks = {asyncio.create_task(one(holder)): holder.name for holder in order}
        try:
            done = (await asyncio.wait(tasks, timeout=self._wait_s))[0] if tasks else set()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        answered = frozenset(
            tasks[task] for task in done if not task.cancelled() and task.exception() is None and task.result()
        )
        return Recovered(found, answered, frozenset(tasks.values()) - answered)


def renewed(placement: Placement, now_ms: int, reason: str = RECOVERED) -> Placement:
    """A placement that stands as its own successor, so that everybody takes it.

    Args:
        placement: From a holder or the store.
        now_ms: Wall clock.
        reason: Why it is written again, one sentence.
    """
    generation = placement.generation.successor(now_ms)
    return replace(placement, generation=generation, reason=reason, moves=(), moved=0)
