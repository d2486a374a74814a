"""Which engine the replicas run."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.local.console import StartError
from deploy.local.options import DEFAULT_REPLICAS, Options
from engines.triton import environment as triton


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What the replicas will be.

    Attributes:
        engine: "triton" or "sim".
        replicas: How many.
        announcement: What to say aloud about it.
    """

    engine: str
    replicas: int
    announcement: str


def choose_engine(options: Options) -> EngineChoice:
    """Chooses Triton where it can run and nothing else was asked for.

    Raises:
        StartError: Triton was asked for and cannot run here.
    """
    why_not = "" if options.engine == "sim" else _why_no_triton()
    if options.engine == "triton" and why_not:
        raise StartError(f"ENGINE=triton cannot run here: {why_not}.\nSimulated replicas can: make run ENGINE=sim")
    engine = "sim" if options.engine == "sim" or why_not else "triton"
    replicas = options.replicas or DEFAULT_REPLICAS[engine]
    if engine == "triton":
        words = f"{replicas} Triton replicas on this CPU, each with a real LLM engine and a tiny random model"
    else:
        words = f"{replicas} simulated H100 replicas: an H100's timing, meaningless text"
        if why_not:
            words = f"NO TRITON HERE: {why_not}.\nRunning {words}"
    return EngineChoice(engine, replicas, words)


def _why_no_triton() -> str:
    """Why Triton cannot run here; empty where it can."""
    if reason := triton.unsupported_reason():
        return reason
    root = triton.default_directory()
    return "" if triton.is_current(root) else f"its environment at {root} could not be made (see above)"
