"""Replica agents as the control plane meets them: load streams and assignments over real gRPC, with knobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc.aio

from common.shard_map import Generation
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc

READY = engine_pb2.REPLICA_STATE_READY


class FakeAgent(engine_pb2_grpc.EngineServiceServicer, sharding_pb2_grpc.AssignmentServiceServicer):
    """One agent on a free port; to be used in an `async with`.

    Args:
        replica_id: Who it is.
        model_id: Whose model.
        interval_s: Between two reports.

    Attributes:
        address: host:port, while it listens.
        says: What it reports; change it in place. The sequence is counted for it.
        held: The assignments it hands over when asked.
        silent: It keeps streams open and says nothing, and does not answer when asked.
        watched: Load streams open now.
        asked: What it was asked for assignments.
        metadata: What came along with the last question.
    """

    def __init__(self, replica_id: str, model_id: str = "tiny", *, interval_s: float = 0.02) -> None:
        self.replica_id = replica_id
        self.model_id = model_id
        self.address = ""
        self.says = engine_pb2.LoadReport(replica_id=replica_id, state=READY)
        self.held: list[sharding_pb2.Assignment] = []
        self.silent = False
        self.watched = 0
        self.asked: list[sharding_pb2.ExchangeAssignmentsRequest] = []
        self.metadata: dict[str, str] = {}
        self._interval_s = interval_s
        self._server = grpc.aio.server()

    def record(self, **fields: Any) -> engine_pb2.Replica:
        """Its entry in the store."""
        base = {"replica_id": self.replica_id, "model_id": self.model_id, "address": self.address, "state": READY}
        return engine_pb2.Replica(**{**base, "capacity_milli_mu_per_minute": 100_000, **fields})

    def load(self, first_key: int, rate: int, tenant_id: str = "", *, warm_tokens: int = 0, in_flight: int = 0) -> None:
        """Reports load of a part of the key space from now on."""
        self.says.key_loads.add(
            first_key=first_key,
            rate_milli_mu_per_minute=rate,
            tenant_id=tenant_id,
            warm_tokens=warm_tokens,
            in_flight=in_flight,
        )

    async def WatchLoad(
        self, request: engine_pb2.WatchLoadRequest, context: Any
    ) -> AsyncIterator[engine_pb2.LoadReport]:
        """See EngineService."""
        assert request.with_keys, "the control plane asks for load by key"
        self.watched += 1
        try:
            while True:
                if not self.silent:
                    self.says.sequence += 1
                    yield self.says
                await asyncio.sleep(self._interval_s)
        finally:
            self.watched -= 1

    async def ExchangeAssignments(
        self, request: sharding_pb2.ExchangeAssignmentsRequest, context: Any
    ) -> sharding_pb2.ExchangeAssignmentsResponse:
        """See AssignmentService."""
        self.asked.append(request)
        self.metadata = {key: str(value) for key, value in context.invocation_metadata()}
        if self.silent:
            await asyncio.Event().wait()
        newer = [
            each for each in self.held if Generation.of(each.generation) > Generation.of(request.held[each.model_id])
        ]
        return sharding_pb2.ExchangeAssignmentsResponse(assignments=newer)

    def Generate(self, request: engine_pb2.EngineGenerateRequest, context: Any) -> AsyncIterator[Any]:
        """Nobody generates here."""
        raise NotImplementedError

    def Calibrate(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        """Nobody calibrates here."""
        raise NotImplementedError

    async def Drain(self, request: engine_pb2.DrainRequest, context: Any) -> engine_pb2.DrainResponse:
        """Nobody drains here."""
        raise NotImplementedError

    async def start(self) -> None:
        """Listens."""
        engine_pb2_grpc.add_EngineServiceServicer_to_server(self, self._server)
        sharding_pb2_grpc.add_AssignmentServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def crash(self) -> None:
        """Is gone at once: its port refuses connections."""
        await self._server.stop(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(None)
