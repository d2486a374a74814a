"""Settings of the edge."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import CommonConfig, setting


@dataclass(frozen=True, kw_only=True)
class EdgeConfig(CommonConfig):
    """Settings of the edge. `grpc_port` is the routers' gRPC port, here and there."""

    http_port: int = setting(8080, "HTTP port, here and at the routers", minimum=1, maximum=65535)
    admin_port: int = setting(8082, "admin API port, here and at the control planes", minimum=1, maximum=65535)
    router: str = setting("router", "host name that resolves to every router")
    control_plane: str = setting("control-plane", "host name that resolves to every control plane")
    backend_ops_port: int = setting(9464, "port of /readyz at routers and control planes", minimum=1, maximum=65535)
    connections_max: int = setting(4096, "open connections; further ones are closed", minimum=1, maximum=1_000_000)
