"""How a service notices that the process which started it is gone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common.service import _watch_supervisor


@pytest.fixture
def supervisor() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed, and is not reaped before the test ends."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    with process:
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="zombies are told apart by /proc")
async def test_supervisor_that_nobody_reaps_counts_as_gone(supervisor: subprocess.Popen[bytes]) -> None:
    """A killed supervisor whose own parent never asks for it stays as a zombie; the service ends all the same."""
    stop = asyncio.Event()
    watcher = asyncio.create_task(_watch_supervisor(supervisor.pid, stop))
    supervisor.kill()
    async with asyncio.timeout(10):
        await stop.wait()
    watcher.cancel()
