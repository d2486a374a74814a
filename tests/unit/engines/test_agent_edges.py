"""The agent's translation and classification: wire in, outcomes out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from common.config import load_config
from engines.agent.core.queue import Priority
from engines.agent.metrics import Outcome
from engines.agent.observed import outcome_of
from engines.agent.translate import FINISH_REASONS, engine_request, priority
from engines.config import SERVICE, EngineConfig
from engines.engine import Finish, Prompt, Sampling
from engines.simulated.engine import SimulatedEngine
from engines.simulated.faults import Faults
from engines.simulated.hardware import HARDWARE
from engines.simulated.service import FaultServicer
from engines.wiring import build_engine
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import (
    FairleadError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    QuotaExceededError,
    Reason,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2


def wire(**sampling: object) -> engine_pb2.EngineGenerateRequest:
    return engine_pb2.EngineGenerateRequest(
        request_id="a",
        request=inference_pb2.GenerateRequest(
            model="m",
            prompt="hello",
            sampling=inference_pb2.SamplingParameters(**sampling),  # type: ignore[arg-type]  # each test's own fields
        ),
    )


def test_unset_sampling_stays_unset() -> None:
    """Proves that a field nobody set reaches the engine as None, the model's own default, and zero as zero."""
    plain = engine_request(wire(max_tokens=7), "m", "")
    assert plain.sampling == Sampling(7)
    full = engine_request(
        wire(max_tokens=7, temperature=0.0, top_p=0.5, top_k=3, seed=0, stop=["x"], ignore_end_token=True), "m", "t"
    )
    assert full.sampling == Sampling(7, 0.0, 0.5, 3, 0, ("x",), ignore_end_token=True)
    assert full.traceparent == "t"


def test_conversations_keep_their_turns() -> None:
    """Proves that a chat reaches the engine as its turns, in order."""
    request = wire(max_tokens=1)
    request.request.chat.messages.add(role="system", content="s")
    request.request.chat.messages.add(role="user", content="u")
    assert engine_request(request, "m", "").prompt == Prompt(messages=(("system", "s"), ("user", "u")))


def test_priorities() -> None:
    """Proves that unset means interactive, and so does a class this agent does not know."""
    classes = {0: Priority.INTERACTIVE, 1: Priority.BATCH, 2: Priority.INTERACTIVE, 3: Priority.SYSTEM, 9: 2}
    for number, expected in classes.items():
        request = engine_pb2.EngineGenerateRequest.FromString(bytes([0x20, number]))
        assert priority(request) == expected


def test_every_finish_has_a_wire_value() -> None:
    """Proves that a new way to finish cannot be forgotten on the wire."""
    assert set(FINISH_REASONS) == set(Finish)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.COMPLETED),
        (asyncio.CancelledError(), Outcome.CANCELLED),
        (GeneratorExit(), Outcome.CANCELLED),
        (QuotaExceededError("full", reason=Reason.QUEUE_FULL), Outcome.QUEUE_FULL),
        (UnavailableError("starting", reason=Reason.NOT_READY), Outcome.NOT_SERVING),
        (UnavailableError("draining", reason=Reason.SHUTTING_DOWN), Outcome.NOT_SERVING),
        (InvalidArgumentError("bad"), Outcome.INVALID),
        (NotFoundError("other model", reason=Reason.UNKNOWN_MODEL), Outcome.INVALID),
        (UnavailableError("dead", reason=Reason.ENGINE_FAILED), Outcome.ENGINE_FAILED),
        (UnavailableError("lost", reason=Reason.REPLICA_LOST), Outcome.REPLICA_LOST),
        (InternalError("defect"), Outcome.INTERNAL),
        (RuntimeError("defect"), Outcome.INTERNAL),
    ],
)
def test_every_end_has_one_outcome(error: BaseException | None, outcome: Outcome) -> None:
    """Proves the classification that makes received equal to the sum over outcomes."""
    assert outcome_of(error) is outcome


@pytest.mark.parametrize("kind", FairleadError.__subclasses__())
def test_no_error_of_the_tree_is_left_without_an_outcome(kind: type[FairleadError]) -> None:
    """Proves that an error class added to the tree still ends in some outcome."""
    assert outcome_of(kind("any")) in set(Outcome)


async def test_fault_service_sets_and_checks() -> None:
    """Proves that faults arrive as sent, that 0 means not slowed, and that nonsense is refused by name."""
    engine = SimulatedEngine(HARDWARE["h100"])
    servicer = FaultServicer(engine)
    await servicer.SetFaults(engine_pb2.SetFaultsRequest(faults=engine_pb2.Faults(hang=True, garbage=True)), None)
    assert engine.faults == Faults(hang=True, garbage=True)
    await servicer.SetFaults(engine_pb2.SetFaultsRequest(), None)
    assert engine.faults == Faults()
    for bad in (engine_pb2.Faults(slow_factor=-1), engine_pb2.Faults(slow_factor=float("nan"))):
        with pytest.raises(InvalidArgumentError, match="slow_factor"):
            await servicer.SetFaults(engine_pb2.SetFaultsRequest(faults=bad), None)
    with pytest.raises(InvalidArgumentError, match="freeze_after_tokens"):
        await servicer.SetFaults(engine_pb2.SetFaultsRequest(faults=engine_pb2.Faults(freeze_after_tokens=-1)), None)


def config(*arguments: str) -> EngineConfig:
    return load_config(EngineConfig, SERVICE, ["--model-id=m", *arguments], {})


def test_hardware_defaults_follow_the_engine(tmp_path: Path) -> None:
    """Proves the defaults of both engines, and that a simulated engine takes the sequence limit it is given."""
    assert (config().hardware_label, config("--engine=triton").hardware_label) == ("h100", "cpu-2core")
    assert isinstance(build_engine(config("--sequences-max=3"), tmp_path), SimulatedEngine)
    with pytest.raises(InvalidArgumentError, match="abacus"):
        build_engine(config("--hardware=abacus"), tmp_path)
