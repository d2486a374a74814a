"""Runs the fake services on an event loop of their own, so that blocking clients can be tested too."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

import grpc.aio

from fairlead.admin.v1 import admin_pb2_grpc, calibration_pb2_grpc, usage_pb2_grpc
from fairlead.capacity.v1 import capacity_pb2_grpc
from fairlead.inference.v1 import decision_pb2_grpc, inference_pb2_grpc
from fairlead.quota.v1 import quota_pb2_grpc
from fairlead.sharding.v1 import sharding_pb2_grpc
from tests.support.fake_platform.control import FakeControlPlane
from tests.support.fake_platform.explain import ControlDecisions, RouterDecisions
from tests.support.fake_platform.router import FakeRouter
from tests.support.waiting import PROCESS_START_S


class FakePlatform:
    """A router and a control plane on two free ports of 127.0.0.1."""

    def __init__(self) -> None:
        self.router = FakeRouter()
        self.control = FakeControlPlane()
        self.address = ""
        self.admin_address = ""
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-platform", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PROCESS_START_S), "the fake platform did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(PROCESS_START_S)

    def set_event(self, event: asyncio.Event) -> None:
        """Sets an event of the fake's own loop from any thread."""
        self._loop.call_soon_threadsafe(event.set)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        router, control = grpc.aio.server(), grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self.router, router)
        decision_pb2_grpc.add_DecisionServiceServicer_to_server(RouterDecisions(self.router), router)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self.control, control)
        calibration_pb2_grpc.add_CalibrationServiceServicer_to_server(self.control.calibration, control)
        capacity_pb2_grpc.add_CapacityServiceServicer_to_server(self.control.capacity, control)
        decision_pb2_grpc.add_DecisionServiceServicer_to_server(ControlDecisions(self.control, self.router), control)
        quota_pb2_grpc.add_RateLimiterServiceServicer_to_server(self.control.limiter, control)
        sharding_pb2_grpc.add_ShardingServiceServicer_to_server(self.control.sharding, control)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(self.control.usage, control)
        self.address = f"127.0.0.1:{router.add_insecure_port('127.0.0.1:0')}"
        self.admin_address = f"127.0.0.1:{control.add_insecure_port('127.0.0.1:0')}"
        await router.start()
        await control.start()
        self._ready.set()
        await self._stopped.wait()
        await router.stop(0)
        await control.stop(0)
