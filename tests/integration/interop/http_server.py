"""A whole router's HTTP door in the test's process, for clients of other languages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from data_plane.gateway.app import Gateway
from data_plane.gateway.server import HttpServer
from fairlead.engine.v1 import engine_pb2
from tests.support.router_lab import FakeUpstream, RouterLab

BODY_BYTES_MAX = 1_000_000
CLIENT_S = 120.0
"""A client process that takes longer hangs."""


class Upstream(FakeUpstream):
    """As its base; whoever says only "endless" gets an answer that does not end by itself."""

    async def generate(
        self,
        replica: engine_pb2.Replica,
        request: engine_pb2.EngineGenerateRequest,
        *,
        deadline_ns: int,
        metadata: Sequence[tuple[str, str]],
    ) -> AsyncGenerator[engine_pb2.EngineGenerateResponse, None]:
        """See PulledUpstream."""
        if [message.content for message in request.request.chat.messages] == ["endless"]:
            try:
                while True:
                    yield engine_pb2.EngineGenerateResponse(text="x", output_tokens=1)
                    await asyncio.sleep(0.01)
            finally:
                self.cancelled.append(replica.replica_id)
        async for message in super().generate(replica, request, deadline_ns=deadline_ns, metadata=metadata):
            yield message


def lab() -> RouterLab:
    """A router with quota for hundreds of requests at once."""
    return RouterLab(["r1", "r2"], rate=600_000_000, burst=300_000_000, upstream=Upstream())


@asynccontextmanager
async def serving(lab: RouterLab) -> AsyncIterator[str]:
    """Yields the base URL."""
    flow, decisions = lab.router.flow, lab.router.decisions
    gateway = Gateway(flow, lab.tables, lab.clock, decisions=decisions, body_bytes_max=BODY_BYTES_MAX)
    server = HttpServer(gateway, host="127.0.0.1", port=0, reuse_port=False, grace_s=1.0)
    port = await server.start()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await server.drain_and_stop()


async def run(*command: str, env: dict[str, str] | None = None, cwd: str | None = None) -> str:
    """Runs a client to its end; its standard output."""
    process = await asyncio.create_subprocess_exec(
        *command, env=env, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(CLIENT_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, (command[0], process.returncode, out[-2000:], err[-2000:])
    return out.decode()
