"""What an agent's record says where routers go past it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.clock import FakeClock
from common.memory_store import MemoryStore
from common.triton.chat import ChatTemplate
from common.triton.wire import Dialect, ServedModel
from engines.agent.dispatcher import Dispatcher
from engines.agent.notices import Notices
from engines.agent.record import Direct, ReplicaIdentity, ReplicaRecord
from engines.config import EngineConfig
from engines.engine import DirectWay, EngineDescription
from engines.triton.messages import described
from engines.wiring import finish
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import InvalidArgumentError
from model_units.units import MilliModelUnitsPerMinute
from tests.support.virtual_loop import run_virtually
from tests.unit.engines.fake_engine import FakeEngine

MODEL = ServedModel(
    "ensemble", Dialect.ENSEMBLE, {"text_input": ("BYTES", 2), "max_tokens": ("INT32", 2)}, frozenset({"b", "a"}), {}
)


def record_of(direct: Direct | None) -> ReplicaRecord:
    identity = ReplicaIdentity("m", "h100", "triton", "", "", MilliModelUnitsPerMinute(100_000), direct)
    return ReplicaRecord(MemoryStore(), identity, clock=FakeClock(), changed=Notices())


def description(port: int) -> EngineDescription:
    triton = described(MODEL, ChatTemplate("{{ bos_token }}", {"bos_token": "<s>"}), status_errors=True)
    way = DirectWay(engine_pb2.DIALECT_TRITON, f"127.0.0.1:{port}", "ensemble", triton)
    return EngineDescription("triton", "2", 8, 1_000, 100, direct=way)


def test_a_record_says_nothing_of_the_engine_unless_asked() -> None:
    """Proves that requests go by the agent by default, whatever the engine could."""
    record = record_of(None)
    record.set_engine(description(1), 0)
    said = record.described
    assert not said.dialect
    assert not said.engine_address
    assert not said.HasField("triton")


def test_a_direct_record_says_all_a_router_needs_and_follows_the_engine() -> None:
    """Shows address, model, credentials' name, tensors and template, and a restarted engine's new address."""
    record = record_of(Direct(credentials="mine"))
    for port in (1, 2):
        record.set_engine(description(port), 0)
        said = record.described
        assert (said.dialect, said.engine_address) == (engine_pb2.DIALECT_TRITON, f"127.0.0.1:{port}")
        assert (said.engine_model, said.engine_credentials) == ("ensemble", "mine")
        assert {each.name: (each.datatype, each.rank) for each in said.triton.inputs} == MODEL.inputs
        assert list(said.triton.outputs) == ["a", "b"]
        assert said.triton.chat_template == "{{ bos_token }}"
        assert dict(said.triton.template_tokens) == {"bos_token": "<s>"}
        assert said.triton.status_errors


def test_routers_may_know_the_engine_by_another_address() -> None:
    """Shows an engine beside its agent, which routers reach from elsewhere."""
    record = record_of(Direct(address="10.0.0.7:8001"))
    record.set_engine(description(1), 0)
    assert record.described.engine_address == "10.0.0.7:8001"


def test_an_engine_without_an_address_cannot_be_direct() -> None:
    """Shows that the setting is refused where it cannot work."""
    options: dict[str, Any] = {"model_id": "m", "direct": True}
    assert EngineConfig(engine="triton", **options).direct
    with pytest.raises(InvalidArgumentError, match="simulated"):
        EngineConfig(engine="simulated", **options)


@pytest.mark.parametrize(("unseen", "waited_s"), [(True, 30.0), (False, 0.0)])
def test_an_agent_that_is_passed_by_drains_by_time(unseen: bool, waited_s: float) -> None:
    """Proves that an engine is not ended under streams its agent cannot see: only the grace period tells."""

    async def run() -> float:
        dispatcher = Dispatcher(
            FakeEngine(),
            model_id="m",
            queued_max=1,
            capacity=MilliModelUnitsPerMinute(100_000),
            clock=FakeClock(),
            changed=Notices(),
            engine_failed=lambda: None,
        )
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        await finish(dispatcher, 30.0, unseen=unseen)
        return loop.time() - begin_s

    assert run_virtually(run()) == pytest.approx(waited_s)
