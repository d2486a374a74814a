"""A relay server in a process of its own, whose memory is nobody else's: prints its port and serves until killed."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import uvloop

from common.telemetry import Telemetry
from data_plane.relay.grpc.calls import ServerCall
from data_plane.relay.grpc.framing import framed
from data_plane.relay.grpc.limits import CallLimits
from data_plane.relay.server import RelayServer, ServerLimits
from tests.unit.relay.server.serving import CONFIG, METHODS, SERVICE, Echo

PARTS_BYTES_MAX = 32 << 20
"""Of messages that have not come whole, of all clients together."""

LIMITS = ServerLimits(calls=CallLimits(connection_waiting_bytes_max=8 << 20, process_waiting_bytes_max=PARTS_BYTES_MAX))


class Stats(Echo):
    """Tells what the process has and holds."""

    def __init__(self, call: ServerCall, server: RelayServer) -> None:
        super().__init__(call, [])
        self._server = server

    def on_half_closed(self) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        told = {
            "resident_bytes": int(status["VmRSS"].split()[0]) << 10,
            "most_resident_bytes": int(status["VmHWM"].split()[0]) << 10,
            "connections": self._server.gate.open,
            "waiting_bytes": self._server.tally.waiting_bytes,
            "cpu_ms": round(1_000 * time.process_time()),
        }
        self.call.send(framed(json.dumps(told).encode()))
        self.call.finish()


class _Forgetful(list[Echo]):
    """Keeps nothing: a test that watches memory would see its own notes grow."""

    def append(self, _: Echo) -> None: ...


async def main() -> None:
    server = RelayServer(CONFIG, Telemetry("test", CONFIG), limits=LIMITS)
    seen = _Forgetful()
    server.serve(SERVICE, {name: lambda call: Echo(call, seen) for name in METHODS})
    server.serve("test.Stats", {"Get": lambda call: Stats(call, server)})
    address = await server.start()
    print(address.rpartition(":")[2], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
