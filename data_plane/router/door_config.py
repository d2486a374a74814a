"""The settings of the front doors: TLS, and what clients may cost. docs/relay-limits.md says what happens beyond."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import CommonConfig, setting


@dataclass(frozen=True, kw_only=True)
class DoorConfig(CommonConfig):
    """What the front doors of a router need to know."""

    grpc_transport: str = setting(
        "relay",
        "what carries gRPC: the router's own relay, or grpcio, the reference it is tested against",
        choices=("relay", "grpcio"),
    )
    tls_certificate_file: str = setting("", "PEM file, certificate and chain of both doors; empty serves plain text")
    tls_key_file: str = setting("", "PEM file, its private key")
    tls_client_ca_file: str = setting("", "PEM file; whose certificates clients must show. Empty asks them for none")
    connections_max: int = setting(10_000, "most connections at each door", minimum=1, maximum=1_000_000)
    connection_streams_max: int = setting(
        1_000, "most calls at a time on one connection of gRPC", minimum=1, maximum=100_000
    )
    header_bytes_max: int = setting(
        32_768, "all headers of one request together, bytes; 32 more count for each", minimum=4_096, maximum=65_536
    )
    request_receive_s: float = setting(60.0, "time for a request to come whole, seconds", minimum=1, maximum=3600)
    answer_unread_s: float = setting(
        60.0, "how long a client may leave an answer unread before it is given up, seconds", minimum=1, maximum=3600
    )
    connection_idle_s: float = setting(
        900.0, "how long a connection without calls is kept, seconds", minimum=5, maximum=86_400
    )
    connection_silence_s: float = setting(
        30.0,
        "silence with open calls after which a client is asked for a sign of life, seconds",
        minimum=1,
        maximum=3600,
    )
    unfinished_bytes_max: int = setting(
        256 << 20, "parts of requests that wait for the rest, of all clients, bytes", minimum=1 << 20, maximum=1 << 36
    )
    resets_per_s: float = setting(
        33.0, "calls that a connection may give up for ever, per second", minimum=1, maximum=100_000
    )
    resets_burst: int = setting(1_000, "calls that a connection may give up at once", minimum=1, maximum=1_000_000)
    control_frames_per_s: float = setting(
        50.0, "pings, settings and frames without effect on a connection, per second", minimum=1, maximum=100_000
    )
    control_frames_burst: int = setting(1_000, "the same at once", minimum=10, maximum=1_000_000)
