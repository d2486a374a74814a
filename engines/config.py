"""Settings of a replica: its agent and the engine beside it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from common.config import CommonConfig, setting
from engines.agent.core.health import HealthLimits
from fairlead.errors import InvalidArgumentError
from model_units.units import REPLICA_CAPACITY

SERVICE: Final = "engines"

SIMULATED: Final = "simulated"
TRITON: Final = "triton"
OPENAI: Final = "openai"

_HEALTH: Final = HealthLimits()
COLD_START_OF_HARDWARE: Final = "hardware"
_COLD_START_MAX_S: Final = 3600
_DEFAULT_HARDWARE: Final = {SIMULATED: "h100", TRITON: "cpu-2core", OPENAI: "external"}


@dataclass(frozen=True, kw_only=True)
class EngineConfig(CommonConfig):
    """What a replica needs to know."""

    engine: str = setting(SIMULATED, "what runs the model", choices=(SIMULATED, TRITON, OPENAI))
    model_id: str = setting("", "id of the model it serves; required")
    hardware: str = setting(
        "", "hardware label; empty means h100 simulated, cpu-2core with Triton, external with OpenAI's API"
    )
    slot: str = setting("", "the seat the actuator started this replica for")
    rack: str = setting("", "failure domain beyond the host")
    capacity_milli_mu_per_minute: int = setting(
        int(REPLICA_CAPACITY), "what it serves at its latency objective, mMU per minute", minimum=1, maximum=10**12
    )
    tickets: bool = setting(
        False, "take tickets: clients that routers send here stream from this replica itself, through ticket_port"
    )
    ticket_port: int = setting(0, "port for clients with tickets; 0 takes a free one", minimum=0, maximum=65535)
    sequences_max: int = setting(0, "most sequences at once; 0 means the engine's default", minimum=0, maximum=2048)
    queued_max: int = setting(512, "most requests that wait in the agent", minimum=0, maximum=1_000_000)
    stall_floor_s: float = setting(
        _HEALTH.stall_floor_s, "least time without a token, with work inside, that means a hang", minimum=0.1
    )
    longest_step_s: float = setting(
        _HEALTH.longest_step_s, "longest legitimate step; five of them raise the stall time", minimum=0
    )
    probe_interval_s: float = setting(_HEALTH.probe_interval_s, "pause between probes of an idle engine", minimum=0.1)
    probe_timeout_s: float = setting(
        _HEALTH.probe_timeout_s, "a probe without an answer counts as failed once per this time", minimum=0.1
    )
    drift_window_s: float = setting(
        5.0, "the engine's speed is compared with its profile once per this time", minimum=0.5, maximum=60
    )
    drift_smoothing_s: float = setting(60.0, "busy time that this comparison looks back on", minimum=1, maximum=3600)
    start_max_s: float = setting(600.0, "longest start of the engine before it is tried again", minimum=1)
    cold_start: str = setting(
        "0", f"simulated engine: how long loading takes, seconds; {COLD_START_OF_HARDWARE}: what its weights take"
    )
    step_tokens_max: int = setting(
        2048,
        "simulated engine: most tokens per step (the chunk budget); less: smoother decoding, later first tokens",
        minimum=1,
        maximum=1_000_000,
    )
    dialect: str = setting("", "Triton: tensors of our own server's model", choices=("", "ensemble", "llmapi"))
    endpoint: str = setting(
        "", "Triton: host:port of a running server; empty starts our own. OpenAI: base URL, as http://127.0.0.1:8000/v1"
    )
    endpoint_key_file: str = setting("", "OpenAI: file with the API key that the agent shows; empty for none")
    model_name: str = setting("", "the model's name on a running server; empty finds it")
    context_tokens: int = setting(
        0, "context of a running server's model, tokens; 0 means what it says, or 4096", minimum=0, maximum=10_000_000
    )
    model_directory: str = setting("", "Triton: folder of the model; empty means the tiny model that ships")
    work_directory: str = setting("", "Triton: where its repository and log go; empty means a temporary folder")
    kv_capacity_tokens: int = setting(0, "Triton, OpenAI: KV cache, tokens; 0 means the engine's default", minimum=0)
    prefix_cache: bool = setting(
        False, "a running server reuses the KV cache of prompts that begin alike (Triton: enable_kv_cache_reuse)"
    )
    threads: int = setting(1, "Triton: inference threads of our own server", minimum=1, maximum=1024)
    direct: bool = setting(
        False, "routers stream from the engine itself; the agent keeps its health, load reports and life cycle"
    )
    direct_address: str = setting("", "with direct: where routers find the engine; empty means where the agent does")
    direct_credentials: str = setting("", "with direct: name of the routers' credentials that the engine wants")
    otlp_traces_url: str = setting("", "Triton: OTLP/HTTP URL for our own server's spans; empty for none")

    def __post_init__(self) -> None:
        if not self.model_id:
            raise InvalidArgumentError("model_id is required: --model-id names the model this replica serves")
        self.cold_start_s(0.0)
        if self.direct and self.engine == SIMULATED:
            raise InvalidArgumentError(
                "a simulated engine has no address: direct goes with triton and openai", field="direct"
            )
        if self.engine == OPENAI and not self.endpoint.startswith(("http://", "https://")):
            raise InvalidArgumentError("engine openai needs an endpoint: the base URL of its API", field="endpoint")

    @property
    def hardware_label(self) -> str:
        """The hardware label, with the default filled in."""
        return self.hardware or _DEFAULT_HARDWARE[self.engine]

    def cold_start_s(self, of_hardware_s: float) -> float:
        """How long loading takes, seconds.

        Args:
            of_hardware_s: What it takes on this hardware, where the setting asks for that.

        Raises:
            InvalidArgumentError: The setting is neither that word nor a number of seconds.
        """
        if self.cold_start == COLD_START_OF_HARDWARE:
            return of_hardware_s
        with contextlib.suppress(ValueError):
            if 0 <= (seconds := float(self.cold_start)) <= _COLD_START_MAX_S:
                return seconds
        allowed = f"0 to {_COLD_START_MAX_S} seconds or {COLD_START_OF_HARDWARE!r}"
        raise InvalidArgumentError(f"cold_start must be {allowed}, not {self.cold_start!r}", field="cold_start")

    @property
    def health(self) -> HealthLimits:
        """How patient the agent is with its engine."""
        return HealthLimits(
            stall_floor_s=self.stall_floor_s,
            longest_step_s=self.longest_step_s,
            probe_interval_s=self.probe_interval_s,
            probe_timeout_s=self.probe_timeout_s,
        )
