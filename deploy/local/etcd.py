"""The store of the local platform: a newer etcd found on the PATH, else the embedded one."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.local.children import Program
from deploy.local.console import StartError
from deploy.local.ports import HOST

VERSION_MIN = (3, 5, 3)
"""Releases 3.5.0 to 3.5.2 can lose consistency after a crash; source: etcd's 3.5 data inconsistency postmortem."""
QUOTA_BYTES = 512 << 20
"""Database limit: hundreds of times what a laptop's platform holds, and small enough not to fill its disk."""


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """An etcd server that was found."""

    path: Path
    version: tuple[int, ...]
    embedded: bool

    def __str__(self) -> str:
        where = "embedded" if self.embedded else str(self.path)
        return f"etcd {'.'.join(map(str, self.version))} ({where})"


def find_etcd() -> EtcdBinary:
    """Finds the etcd to run.

    Raises:
        StartError: There is none; the message says how to get one.
    """
    on_path = shutil.which("etcd")
    found = _probe(Path(on_path), embedded=False) if on_path else None
    if found is not None and found.version >= VERSION_MIN:
        return found
    embedded = Path(sys.executable).with_name("etcd")
    fallback = _probe(embedded, embedded=True) if embedded.exists() else None
    if fallback is not None and (found is None or fallback.version >= found.version):
        return fallback
    if found is not None:
        return found
    raise StartError(
        "There is no etcd here, and none is embedded for this platform. Install one, 3.5.3 or newer:\n"
        "    brew install etcd            (macOS)\n"
        "    apt-get install etcd-server  (Debian 13, Ubuntu 24.04)"
    )


def _probe(path: Path, *, embedded: bool) -> EtcdBinary | None:
    try:
        done = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", done.stdout)
    return EtcdBinary(path, tuple(map(int, version.groups())), embedded) if version else None


def etcd_program(binary: EtcdBinary, data_dir: Path, *, client_port: int, peer_port: int) -> Program:
    """How etcd is run: one node, loopback only, bounded in size, compacting its history.

    It ends by SIGTERM when the launcher dies, so that its data are closed in order.
    """
    client, peer = f"http://{HOST}:{client_port}", f"http://{HOST}:{peer_port}"
    flags = {
        "name": "local",
        "data-dir": str(data_dir),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"local={peer}",
        "quota-backend-bytes": str(QUOTA_BYTES),
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "10m",
        "log-level": "warn",
    }
    advice = (
        f"If its data are damaged, remove them: rm -r {data_dir} (tenants, keys and models of this platform are lost)."
    )
    command = [str(binary.path), *(f"--{name}={value}" for name, value in flags.items())]
    return Program("etcd", command, advice, death_signal=signal.SIGTERM)
