"""Passes assignments on between this router, replica agents and other routers, so that none needs the sharder for it.

Agents say with every load report which assignment they hold. One that holds a newer one is asked for it at once; one
that has held an older one for a while is handed ours. A router that finds no assignment of a model when it starts asks
agents and routers before it serves: falling back to the whole fleet would spread every tenant over all of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc.aio

from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.rpc import channel
from common.shard_map import Generation
from data_plane.router.assignments import Assignments
from data_plane.router.core.fleet import Fleet
from data_plane.router.upstream_grpc import Channels
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc

CALL_TIMEOUT_S: Final = 1.5
"""An exchange is looked up in memory on both sides."""

PAUSE_NS: Final = 2 * NS_PER_S
"""Shortest time between two exchanges with one agent."""

HAND_OVER_AFTER_NS: Final = 3 * NS_PER_S
"""Agents follow the store themselves; only who still holds an older assignment after this long is handed ours."""

CALLS_MAX: Final = 8
"""Exchanges at a time."""

ASKED_MAX: Final = 3
"""So many agents of a model, and so many routers, are asked for what nobody knows: one of them has the newest, or will
hear of it with the next report."""

_ASK_AGAIN_S: Final = 5.0

log = get_logger(__name__)

# None is what grpc gives for an answer that it cannot parse.
Answer = Awaitable[sharding_pb2.ExchangeAssignmentsResponse | None]
Call = Callable[[sharding_pb2.ExchangeAssignmentsRequest], Answer]


@dataclass(frozen=True, slots=True)
class _Errand:
    replica_id: str
    address: str
    model_id: str
    theirs: Generation


class AssignmentExchange:
    """Exchanges assignments.

    Args:
        assignments: The book.
        fleet: Whose agents are asked.
        channels: Connections to agents.
        routers: All that are registered, by anything.
        models: Ids of the models there are.
        clock: Monotonic time.
        token: The platform's own, which routers ask for.
        router_id: This router.
    """

    def __init__(
        self,
        assignments: Assignments,
        fleet: Fleet,
        channels: Channels,
        *,
        routers: Callable[[], Mapping[str, admin_pb2.ServiceInstance]],
        models: Callable[[], Iterable[str]],
        clock: Clock,
        token: str,
        router_id: str,
    ) -> None:
        self._assignments = assignments
        self._fleet = fleet
        self._channels = channels
        self._routers = routers
        self._models = models
        self._clock = clock
        self._metadata = (("authorization", f"Platform {token}"),)
        self._router_id = router_id
        self._errands: dict[str, _Errand] = {}
        self._last_ns: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._asked = False

    @property
    def asked(self) -> bool:
        """Whether nothing is left to ask for before serving: every model has an assignment, or others were asked."""
        return self._asked or not self._lacking() or not self._holders()

    def noticed(self, replica_id: str, model_id: str, address: str, theirs: Generation) -> None:
        """An agent said which assignment it holds.

        Args:
            replica_id: Whose agent.
            model_id: Of which model.
            address: Where it listens.
            theirs: What it holds; the zero generation for nothing.
        """
        if not self._differs(model_id, theirs):
            return
        if self._clock.monotonic_ns() - self._last_ns.get(replica_id, -PAUSE_NS) < PAUSE_NS:
            return
        self._errands[replica_id] = _Errand(replica_id, address, model_id, theirs)
        self._wake.set()

    async def run(self) -> None:
        """Runs errands until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_for_the_lacking())
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._forget()
                while self._errands:
                    batch = [
                        self._errands.pop(next(iter(self._errands))) for _ in range(min(CALLS_MAX, len(self._errands)))
                    ]
                    await asyncio.gather(*(self._meet(each) for each in batch))

    async def ask(self) -> None:
        """Asks agents and routers for the assignments of models that have none here."""
        lacking = self._lacking()
        if not lacking:
            return
        members = [member.record for member in self._fleet if member.record.model_id in lacking]
        random.shuffle(members)
        agents = [record for at, record in enumerate(members) if _place(members, at) < ASKED_MAX]
        routers = self._others()
        chosen = random.sample(routers, min(ASKED_MAX, len(routers)))
        await asyncio.gather(
            *(self._exchange(self._agent(each.address), each.replica_id, each.model_id) for each in agents),
            *(self._with_router(each) for each in chosen),
        )

    async def _ask_for_the_lacking(self) -> None:
        while True:
            if self._lacking() and self._holders():
                await self.ask()
                self._asked = True
            await asyncio.sleep(_ASK_AGAIN_S if self._asked else 0.1)

    def _holders(self) -> bool:
        """Whether there is anybody to ask."""
        return bool(next(iter(self._fleet), None) or self._others())

    def _others(self) -> list[admin_pb2.ServiceInstance]:
        return [each for each in self._routers().values() if each.instance_id != self._router_id]

    def _lacking(self) -> set[str]:
        return {model_id for model_id in self._models() if self._assignments.get(model_id) is None}

    def _differs(self, model_id: str, theirs: Generation) -> bool:
        """Whether there is something to exchange with who holds this."""
        ours = self._assignments.generation(model_id)
        return theirs > ours or (theirs < ours and self._assignments.held_for_ns(model_id) >= HAND_OVER_AFTER_NS)

    async def _meet(self, errand: _Errand) -> None:
        if not self._differs(errand.model_id, errand.theirs):
            return  # another agent has handed it over meanwhile
        self._last_ns[errand.replica_id] = self._clock.monotonic_ns()
        await self._exchange(self._agent(errand.address), errand.replica_id, errand.model_id)

    def _agent(self, address: str) -> Call:
        def call(request: sharding_pb2.ExchangeAssignmentsRequest) -> Answer:
            # Anew for every call: the channel may have been closed since the last one.
            stub = sharding_pb2_grpc.AssignmentServiceStub(self._channels.get(address))
            return stub.ExchangeAssignments(request, timeout=CALL_TIMEOUT_S)

        return call

    async def _with_router(self, router: admin_pb2.ServiceInstance) -> None:
        async with channel(router.address) as opened:
            stub = sharding_pb2_grpc.AssignmentServiceStub(opened)

            def call(request: sharding_pb2.ExchangeAssignmentsRequest) -> Answer:
                return stub.ExchangeAssignments(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata)

            await self._exchange(call, router.instance_id, "")

    async def _exchange(self, call: Call, who: str, model_id: str) -> None:
        """Meets one holder; with an agent only about its own model.

        Args:
            call: Reaches it.
            who: For the log.
            model_id: About which model, empty for all.
        """
        held = self._assignments.held()
        if model_id:
            held = {model_id: held[model_id]} if model_id in held else {}
        request = sharding_pb2.ExchangeAssignmentsRequest(held=held)
        try:
            answer = await call(request)
            if answer is None:
                log.warning("assignments not exchanged", who=who, error="the answer cannot be read")
                return
            for assignment in answer.assignments:
                if model_id in ("", assignment.model_id):
                    self._assignments.take(assignment, who)
            wanted = [self._assignments.message(each) for each in answer.wanted_model_ids if model_id in ("", each)]
            handed = [each for each in wanted if each is not None]
            if handed:
                await call(sharding_pb2.ExchangeAssignmentsRequest(held=self._assignments.held(), assignments=handed))
                log.info("assignment handed over", to=who, models=[each.model_id for each in handed])
        except grpc.aio.AioRpcError as failure:
            log.warning("assignments not exchanged", who=who, error=failure.details())
        except grpc.aio.UsageError as failure:  # the channel was closed under the call
            log.warning("assignments not exchanged", who=who, error=str(failure))

    def _forget(self) -> None:
        """Forgets when agents were met that are gone."""
        if len(self._last_ns) > 64:
            known = {member.record.replica_id for member in self._fleet}
            self._last_ns = {each: at_ns for each, at_ns in self._last_ns.items() if each in known}


def _place(members: list[engine_pb2.Replica], at: int) -> int:
    """How many of the same model come before this one."""
    return sum(each.model_id == members[at].model_id for each in members[:at])
