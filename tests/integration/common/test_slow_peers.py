"""Peers that take their time to answer a new connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio
import pytest

from common.etcd_store import EtcdStore
from common.rpc import channel
from fairlead.sdk.settings import channel_options

PATIENCE_S = 0.6
"""Several round trips to another continent, or a machine that stood still for a moment."""


async def to_etcd(address: str) -> None:
    await EtcdStore(address).get("a key")


async def to_a_service(address: str) -> None:
    await channel(address).channel_ready()


async def to_a_router(address: str) -> None:
    await grpc.aio.insecure_channel(address, options=channel_options(None)).channel_ready()


@pytest.mark.parametrize("connect", [to_etcd, to_a_service, to_a_router])
async def test_a_first_connection_is_given_time(connect: Callable[[str], asyncio.Future[None]]) -> None:
    """Proves that the first attempt to connect is not given up before a far or busy peer can have answered it."""
    loop = asyncio.get_running_loop()
    kept_s: asyncio.Future[float] = loop.create_future()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begin_s = loop.time()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await reader.read(1_000):
                    pass
        except TimeoutError:
            pass
        if not kept_s.done():
            kept_s.set_result(loop.time() - begin_s)
        writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connecting = asyncio.ensure_future(connect(f"127.0.0.1:{port}"))
    try:
        assert await kept_s >= PATIENCE_S
    finally:
        connecting.cancel()
        await asyncio.wait([connecting])
        server.close()
