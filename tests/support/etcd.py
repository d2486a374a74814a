"""A real etcd server for tests."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.support.ports import free_port


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

    def start(self, timeout_s: float = 20.0) -> None:
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
