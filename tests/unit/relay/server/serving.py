"""A relay server in this process, and what it serves for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from common.config import CommonConfig
from common.telemetry import Telemetry
from data_plane.relay.grpc.calls import ServerCall
from data_plane.relay.grpc.framing import framed
from data_plane.relay.server import RelayServer, ServerLimits
from fairlead.errors import QuotaExceededError, Reason, UnauthenticatedError

CONFIG = CommonConfig()
SERVICE = "test.Relay"
REFUSAL = QuotaExceededError(
    "zu viel: 100 % äöü", reason=Reason.QUOTA_USED_UP, subject="t/m", retry_after_s=2.5, metadata={"left": "0"}
)


class Echo:
    """Serves a call: answers with what came, as often as its method says.

    Args:
        call: The call.
        seen: Where all calls are noted.
    """

    def __init__(self, call: ServerCall, seen: list[Echo]) -> None:
        if call.header(b"authorization") == b"wrong":
            raise UnauthenticatedError("unknown key")
        self.call = call
        self.messages: list[bytes] = []
        self.gone = 0
        self.writable = 0
        self.half_closed = False
        seen.append(self)

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)

    def on_half_closed(self) -> None:
        self.half_closed = True
        name = self.call.method.rpartition("/")[2]
        match name:
            case "Once":
                self.call.send(framed(self.messages[0]))
                self.call.finish()
            case "Thrice":
                for _ in range(3):
                    self.call.send(framed(self.messages[0]))
                self.call.finish()
            case "Fail":
                self.call.fail(REFUSAL)
            case "FailLate":
                self.call.send(framed(b"first"))
                self.call.fail(REFUSAL)
            case "Defect":
                raise ValueError("a secret")
            case _:
                pass  # Silence

    def on_gone(self) -> None:
        self.gone += 1

    def on_writable(self) -> None:
        self.writable += 1


METHODS = ("Once", "Thrice", "Fail", "FailLate", "Defect", "Silence")


class Served:
    """A server that listens.

    Attributes:
        server: The server.
        seen: The calls it has served itself.
    """

    def __init__(self, server: RelayServer, seen: list[Echo]) -> None:
        self.server = server
        self.seen = seen

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def port(self) -> int:
        return int(self.server.address.rpartition(":")[2])


@asynccontextmanager
async def serving(limits: ServerLimits | None = None, **settings: Any) -> AsyncIterator[Served]:
    """The echo on a free port, drained without grace at the end."""
    seen: list[Echo] = []
    add = settings.pop("add", None)
    server = RelayServer(CONFIG, Telemetry("test", CONFIG), limits=limits, **settings)
    server.serve(SERVICE, {name: lambda call: Echo(call, seen) for name in METHODS})
    if add is not None:
        add(server)
    await server.start()
    try:
        yield Served(server, seen)
    finally:
        await server.drain_and_stop(0.0)
        assert server.gate.open == 0
        assert server.tally.waiting_bytes == 0


def path(name: str) -> str:
    return f"/{SERVICE}/{name}"


async def failed(call: Any) -> grpc.aio.AioRpcError:
    """How a call of grpcio failed."""
    try:
        if isinstance(call, grpc.aio.UnaryStreamCall | grpc.aio.StreamStreamCall):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("it went well")
