"""A real etcd server for tests, and a client of it that waits for it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from common.etcd_store import EtcdStore
from common.store import Entry, Listing
from fairlead.errors import UnavailableError
from tests.support.ports import free_port
from tests.support.waiting import PROCESS_START_S

T = TypeVar("T")


class EtcdServer:
    """One etcd process on free ports with its data below a folder of the test.

    Args:
        folder: Where its data and log live.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._peer_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self, timeout_s: float = PROCESS_START_S) -> None:
        """Starts the server on its data and returns when it is healthy."""
        beside = Path(sys.executable).with_name("etcd")
        binary = shutil.which("etcd") or str(beside)
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        command = [binary, "--data-dir", str(self._folder / "etcd"), "--log-level", "error", "--name", "test"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client, "--unsafe-no-fsync"]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"test={peer}"]
        with (self._folder / "etcd.log").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{client}/health", timeout=1) as response:
                    if response.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"etcd did not start: {(self._folder / 'etcd.log').read_text()[-2000:]}")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal: SIGSTOP and SIGCONT freeze and thaw it."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once; its data stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class PatientStore(EtcdStore):
    """The store as a test itself reads and writes it: where etcd does not answer for a moment, it asks again."""

    async def get(self, key: str) -> Entry | None:
        """See Store."""
        return await _patiently(lambda: EtcdStore.get(self, key))

    async def list(self, prefix: str) -> Listing:
        """See Store."""
        return await _patiently(lambda: EtcdStore.list(self, prefix))

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """See Store."""
        return await _patiently(lambda: EtcdStore.put(self, key, value, lease_id=lease_id))


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeats a call that may be made twice until etcd answers it.

    Raises:
        UnavailableError: It does not within the time a process may take to start.
    """
    deadline = time.monotonic() + PROCESS_START_S
    while True:
        try:
            return await call()
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
