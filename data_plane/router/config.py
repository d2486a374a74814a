"""The router's settings."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import setting
from common.tickets import TICKET_LIFE_S_MAX
from data_plane.router.door_config import DoorConfig


@dataclass(frozen=True, kw_only=True)
class RouterConfig(DoorConfig):
    """What a router process needs to know."""

    http_port: int = setting(0, "port of the OpenAI-compatible HTTP API; 0 takes a free one", minimum=0, maximum=65535)
    key_pepper_file: str = setting("", "file with 32 or more random bytes, the same for control plane and routers")
    engine_credentials_file: str = setting(
        "", "TOML file with the keys that routers show to engines they reach themselves, by name; empty for none"
    )
    state_dir: str = setting(
        "", "folder for snapshots and the usage journal, so that a router starts without etcd; empty keeps none"
    )
    request_timeout_s_max: float = setting(600.0, "longest life of a request, seconds", minimum=1, maximum=86400)
    token_timeout_s: float = setting(
        60.0, "longest silence of a replica after its first token, seconds", minimum=1, maximum=3600
    )
    ticket_life_s: float = setting(
        10.0, "how long a ticket to a replica may be redeemed, seconds", minimum=1, maximum=TICKET_LIFE_S_MAX
    )
    prompt_bytes_max: int = setting(3_500_000, "longest prompt, UTF-8 bytes", minimum=1, maximum=4_000_000)
    body_bytes_max: int = setting(8_000_000, "largest HTTP body, bytes", minimum=1_000, maximum=64_000_000)
    batch_waiting_max: int = setting(10_000, "most batch requests waiting for quota", minimum=0, maximum=1_000_000)
    batch_waiting_per_tenant_max: int = setting(
        1_000, "most batch requests of one tenant and model waiting for quota", minimum=0, maximum=1_000_000
    )
    answers_kept_bytes_max: int = setting(
        64_000_000, "memory for answers kept for repeated request ids, bytes", minimum=0, maximum=4_000_000_000
    )
    decisions_kept_max: int = setting(
        10_000,
        "newest requests whose decisions can be asked for, about 3 kB of memory each",
        minimum=0,
        maximum=1_000_000,
    )
    workers: int = setting(
        1, "router processes that share the ports; more than 1 run under a supervisor", minimum=1, maximum=64
    )
    worker_start_s: float = setting(
        60.0, "with several workers: seconds for a replacement to become ready", minimum=1, maximum=3600
    )
    worker_hang_s: float = setting(
        15.0, "with several workers: silence after which one is killed and replaced, seconds", minimum=3, maximum=3600
    )
