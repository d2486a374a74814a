"""What is fuzzed, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import http2_targets

TARGETS: dict[str, Callable[[bytes], None]] = {
    "http2-bytes": http2_targets.connection,
    "http2-frames": http2_targets.frames_of_a_peer,
    "http2-headers": http2_targets.headers,
}
"""Each takes any bytes, and raises what no bytes may lead to."""
