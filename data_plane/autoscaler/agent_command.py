"""The command line of a replica agent, from the model's definition and the autoscaler's own settings."""

from __future__ import annotations

import sys
from pathlib import Path

from data_plane.autoscaler.config import AutoscalerConfig
from fairlead.admin.v1 import admin_pb2

TRITON = "triton"


def agent_command(config: AutoscalerConfig, model: admin_pb2.Model, slot: str) -> list[str]:
    """What to run for one replica.

    Args:
        config: The autoscaler's settings; an agent shares the store, the host, the collector and the supervisor.
        model: What the replica serves.
        slot: The seat it is started for.
    """
    settings = {
        "model-id": model.model_id,
        "engine": model.engine.engine,
        "hardware": model.engine.hardware,
        "slot": slot,
        "etcd-endpoint": config.etcd_endpoint,
        "bind-host": config.bind_host,
        "advertise-host": config.advertise_host,
        "otlp-endpoint": config.otlp_endpoint,
        "trace-sample-ratio": str(config.trace_sample_ratio),
        "log-level": config.log_level,
        "log-format": config.log_format,
        "drain-grace-s": str(config.drain_grace_s),
        "supervisor-pid": str(config.supervisor_pid),
    }
    if model.engine.sequences_max:
        settings["sequences-max"] = str(model.engine.sequences_max)
    if model.engine.engine == TRITON:
        # Of the seat, not of the process: whatever a killed agent left there is found and replaced by the next.
        settings["work-directory"] = str(Path(config.log_dir).absolute() / f"{model.model_id}-{slot}.engine")
    if model.engine.dialect:
        settings["dialect"] = model.engine.dialect
    if model.engine.endpoint:
        settings["endpoint"] = model.engine.endpoint
    return [sys.executable, "-m", "engines", *(f"--{name}={value}" for name, value in settings.items() if value)]
