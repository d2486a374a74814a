"""What is fuzzed, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import grpc_targets, http1_targets, http2_exchange, http2_headers, http2_targets

TARGETS: dict[str, Callable[[bytes], None]] = {
    "http2-bytes": http2_targets.connection,
    "http2-frames": http2_exchange.frames_of_a_peer,
    "http2-headers": http2_headers.headers,
    "http1-bytes": http1_targets.endpoint,
    "grpc-framing": grpc_targets.framing,
    "grpc-values": grpc_targets.values,
    "grpc-pieces": grpc_targets.piece,
    "grpc-server": grpc_targets.server,
    "grpc-client": grpc_targets.client,
}
"""Each takes any bytes, and raises what no bytes may lead to."""
