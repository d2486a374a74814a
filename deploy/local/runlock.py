"""One platform per run directory."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.console import StartError


class AlreadyRunningError(StartError):
    """Another launcher runs the platform of this run directory."""


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Holds the run directory as long as the block lasts; the kernel gives it back even after a SIGKILL.

    Raises:
        AlreadyRunningError: Somebody else holds it; the message says who and where it serves.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(_describe_holder(run_dir, os.pread(descriptor, 64, 0))) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _describe_holder(run_dir: Path, content: bytes) -> str:
    pid = content.decode(errors="replace").strip() or "unknown"
    lines = [f"A platform already runs from {run_dir} (process {pid})."]
    try:
        running = json.loads((run_dir / "platform.json").read_text())
        lines.append(
            f"It serves HTTP at {running['http']}, gRPC at {running['grpc']}, the admin API at {running['admin']}."
        )
    except (OSError, ValueError, KeyError):
        lines.append("It is still starting or just stopping.")
    lines.append(f"Stop it with Ctrl-C or `kill {pid}`, or run another beside it:")
    lines.append("    make run RUN_DIR=build/run2 HTTP_PORT=0 GRPC_PORT=0 ADMIN_PORT=0")
    return "\n".join(lines)
