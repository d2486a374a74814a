"""The command line of an agent: everything the engine's own configuration has to understand."""

from __future__ import annotations

from data_plane.autoscaler.agent_command import agent_command
from data_plane.autoscaler.config import AutoscalerConfig
from fairlead.admin.v1 import admin_pb2

CONFIG = AutoscalerConfig(etcd_endpoint="e:1", supervisor_pid=7, log_dir="logs")


def flags(engine: admin_pb2.EngineSpec) -> dict[str, str]:
    command = agent_command(CONFIG, admin_pb2.Model(model_id="m", engine=engine), "replica-3")
    assert command[1:3] == ["-m", "engines"]
    return dict(word.removeprefix("--").split("=", 1) for word in command[3:])


def test_says_who_it_is_and_whom_it_belongs_to() -> None:
    """Model, slot, store and supervisor are always there; what the model leaves open is left out."""
    told = flags(admin_pb2.EngineSpec(engine="simulated", hardware="h100"))
    assert told.items() >= {"model-id": "m", "slot": "replica-3", "etcd-endpoint": "e:1", "supervisor-pid": "7"}.items()
    assert told.items() >= {"engine": "simulated", "hardware": "h100"}.items()
    assert not told.keys() & {"sequences-max", "dialect", "endpoint", "work-directory"}


def test_triton_gets_a_folder_of_its_seat() -> None:
    """A tritonserver's files are where the next one of the seat finds them."""
    told = flags(admin_pb2.EngineSpec(engine="triton", sequences_max=8, dialect="llmapi", endpoint="t:8001"))
    assert told.items() >= {"sequences-max": "8", "dialect": "llmapi", "endpoint": "t:8001"}.items()
    assert told["work-directory"].endswith("/logs/m-replica-3.engine")


def test_every_flag_is_one_the_engine_knows() -> None:
    """The two sides meet only on the command line; nobody may rename a flag alone."""
    from dataclasses import fields

    from engines.config import EngineConfig

    told = flags(admin_pb2.EngineSpec(engine="triton", hardware="h", sequences_max=8, dialect="llmapi", endpoint="t:1"))
    assert {name.replace("-", "_") for name in told} <= {field.name for field in fields(EngineConfig)}
