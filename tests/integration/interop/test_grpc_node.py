"""gRPC's client for Node against the relay's server."""

from __future__ import annotations

import json
import os

import grpc

from fairlead.errors import Reason
from tests.integration.interop.grpc_server import interop
from tests.integration.interop.http_server import run
from tests.integration.interop.node import installed, node
from tests.support.waiting import eventually
from tests.unit.relay.server.serving import REFUSAL


def code(name: str) -> int:
    value: int = grpc.StatusCode[name].value[0]
    return value


async def test_grpc_for_node() -> None:
    """Proves all four kinds of calls, large messages, deadlines, cancellation, errors, metadata and 1,000 at once."""
    program = node()
    client = await installed("grpc_node")
    async with interop() as served:
        seen = json.loads(await run(program, str(client), env={**os.environ, "ADDRESS": served.address}))
        silent = [each for each in served.seen if each.call.method.endswith("Silence")]
        await eventually(lambda: [each.gone for each in silent] == [1, 1])
    assert seen["once"] == "hello"
    assert seen["large"] is True
    assert seen["tooLarge"] == code("RESOURCE_EXHAUSTED")
    assert seen["thrice"] == ["a", "a", "a"]
    assert seen["failLate"] == {"messages": ["first"], "code": code("RESOURCE_EXHAUSTED")}
    failed_code, failed_text, details_bytes = seen["fail"]
    assert (failed_code, failed_text) == (code("RESOURCE_EXHAUSTED"), REFUSAL.message)
    assert REFUSAL.reason is Reason.QUOTA_USED_UP
    assert details_bytes > 0
    assert seen["count"] == 5_000
    assert seen["deadline"] == code("DEADLINE_EXCEEDED")
    assert seen["cancelled"] == code("CANCELLED")
    assert seen["metadata"] == {"x-tenant": "t", "x-bytes-bin": "AP8H"}
    assert seen["trailer"] == "last"
    assert seen["many"] is True
    assert seen["both"] == [f"heard {number}" for number in range(5)]
    assert seen["collect"] == "1000000"
    assert seen["compressed"] == code("UNIMPLEMENTED")
