from __future__ import annotations

from pathlib import Path

import pytest

from engines.config import EngineConfig
from engines.simulated.engine import SimulatedEngine
from engines.simulated.hardware import hardware
from engines.wiring import build_engine
from fairlead.errors import InvalidArgumentError


def build(**settings: object) -> SimulatedEngine:
    config = EngineConfig(model_id="m", **settings)  # type: ignore[arg-type]  # each test names fields that exist
    engine = build_engine(config, Path())
    assert isinstance(engine, SimulatedEngine)
    return engine


def test_cold_start_is_nothing_seconds_or_what_the_hardware_takes() -> None:
    """Proves the three ways to say how long loading takes."""
    config = EngineConfig(model_id="m")
    assert config.cold_start_s(60.0) == 0.0
    assert EngineConfig(model_id="m", cold_start="1.5").cold_start_s(60.0) == 1.5
    of_hardware_s = hardware("h100-tp4").cold_start_s()
    assert EngineConfig(model_id="m", cold_start="hardware").cold_start_s(of_hardware_s) == of_hardware_s > 60


@pytest.mark.parametrize("wrong", ["-1", "nan", "inf", "3601", "long", ""])
def test_other_cold_starts_are_refused(wrong: str) -> None:
    """Proves that a cold start that is no sensible time is refused by name, when the process starts."""
    with pytest.raises(InvalidArgumentError, match="cold_start must be 0 to 3600 seconds or 'hardware'") as failure:
        EngineConfig(model_id="m", cold_start=wrong)
    assert failure.value.field == "cold_start"


async def test_limits_reach_the_engine() -> None:
    """Proves that the sequence limit is the one an engine says it has, with its default filled in."""
    for settings, sequences_max in (({}, 256), ({"sequences_max": 8, "step_tokens_max": 8}, 8)):
        engine = build(**settings)
        assert (await engine.start()).sequences_max == sequences_max
        await engine.stop()


def test_a_step_must_hold_every_sequence() -> None:
    """Proves that a chunk budget below the number of sequences is refused with both numbers."""
    with pytest.raises(InvalidArgumentError, match=r"step_tokens_max is 64; .* 256 sequences"):
        build(step_tokens_max=64)
