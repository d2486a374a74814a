"""Runs the real launcher the way make does, and finds whatever it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0
END_S = 45.0


class MakeRun:
    """One launcher on free ports in a folder of the test.

    Args:
        run_dir: Everything the platform writes.
        options: Further options of the launcher, by name.
    """

    def __init__(self, run_dir: Path, **options: object) -> None:
        chosen = {"engine": "sim", "replicas": 2, "http_port": 0, "grpc_port": 0, "admin_port": 0, "replay": 0}
        chosen |= {"run_dir": run_dir} | options
        self.run_dir = run_dir
        self.console_path = run_dir.with_suffix(".console")
        flags = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        with self.console_path.open("ab") as console:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.local", *flags],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    @property
    def console(self) -> str:
        """What it has printed."""
        return self.console_path.read_text()

    @property
    def document_path(self) -> Path:
        """platform.json."""
        return self.run_dir / "platform.json"

    def document(self) -> dict[str, Any]:
        """What platform.json says."""
        facts: dict[str, Any] = json.loads(self.document_path.read_text())
        return facts

    def pids(self) -> dict[str, int]:
        """Process ids by name, from platform.json."""
        return {process["name"]: process["pid"] for process in self.document()["processes"]}

    async def serving(self) -> None:
        """Waits until everything serves; fails with the console's text when the launcher ends instead."""

        def there() -> bool:
            assert self.process.poll() is None or self.document_path.exists(), self.console
            return self.document_path.exists()

        await eventually(there, START_S, f"platform.json; console: {self.console_path}")

    async def ends(self) -> int:
        """Waits until the launcher has ended and returns its exit code."""
        await eventually(lambda: self.process.poll() is not None, END_S, "the launcher's end")
        return self.process.wait()

    def leftovers(self) -> list[str]:
        """Command lines of live processes that belong to this run."""
        marks = (f"--supervisor-pid={self.process.pid}", str(self.run_dir))
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = process.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")
                zombie = process.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            ours = any(mark in word for mark in marks for word in words) and int(process.name) != os.getpid()
            if ours and not zombie:
                found.append(" ".join(words))
        return found

    def kill(self) -> None:
        """Ends the launcher and its children at once, whatever state they are in."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
