"""A supervisor whose workers are small: `python -m tests.support.fake_crew` with a router's settings.

A worker answers every line with its instance, a space and its process id, after as many seconds as the line says, on
both ports alike. Files in its `state_dir` make it misbehave: `broken` ends it at its start, `hang-INSTANCE` stops its
loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from common.service import run_service
from data_plane.router.config import RouterConfig
from data_plane.router.sockets import Worker
from data_plane.supervisor import wire
from data_plane.supervisor.service import supervise
from fairlead.errors import InvalidArgumentError


class Answering:
    """A door that answers lines."""

    def __init__(self, name: str) -> None:
        self._answer = f"{name} {os.getpid()}\n".encode()
        self._servers: dict[socket.socket, asyncio.Server] = {}
        self._open: set[asyncio.Task[None]] = set()

    async def listen_on(self, sockets: Sequence[socket.socket]) -> int:
        """See Door."""
        for each in sockets:
            self._servers[each] = await asyncio.start_server(self._came, sock=each, backlog=1024)
        return int(sockets[0].getsockname()[1])

    async def leave(self, sockets: Sequence[socket.socket]) -> None:
        """See Door."""
        for each in sockets:
            self._servers.pop(each).close()

    async def drain(self) -> None:
        """Takes nothing new, answers what has been asked."""
        await self.leave(list(self._servers))
        await asyncio.gather(*self._open)

    def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        await asyncio.sleep(float(line or b"0"))
        writer.write(self._answer)
        writer.close()


async def work(config: RouterConfig, stop: asyncio.Event) -> None:
    """A worker."""
    folder = Path(config.state_dir)
    if (folder / "broken").exists():
        raise InvalidArgumentError("this worker is broken")
    worker = Worker.from_environment()
    assert worker is not None
    app = web.Application()
    app.router.add_get("/metrics", _metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, config.bind_host, 0).start()
    async with asyncio.TaskGroup() as tasks:
        await worker.join(stop, tasks)
        doors = Answering(config.instance_id), Answering(config.instance_id)
        for door, sockets in zip(doors, (worker.grpc, worker.http), strict=True):
            await door.listen_on(sockets)
        worker.serves(f"{config.bind_host}:{runner.addresses[0][1]}", *doors, tasks)
        while not stop.is_set():
            if (folder / f"hang-{config.instance_id}").exists():
                time.sleep(3600)  # noqa: ASYNC251  # that is what hanging is
            await asyncio.sleep(0.05)
        worker.leaves()
        await asyncio.gather(*(door.drain() for door in doors))
    await runner.cleanup()


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(text='# HELP a_total A.\n# TYPE a_total counter\na_total 1.0\na_total{b="c"} 2.0\n')


def command(instance_id: str) -> list[str]:
    """A worker's command."""
    return [sys.executable, "-m", "tests.support.fake_crew", *sys.argv[1:], "--instance-id", instance_id]


async def serve(config: RouterConfig, stop: asyncio.Event) -> None:
    """Supervisor or worker, whichever this process is."""
    if wire.VARIABLE in os.environ:
        await work(config, stop)
    else:
        await supervise(config, stop, command=command)


if __name__ == "__main__":
    sys.exit(run_service("router", RouterConfig, serve))
