"""A router that writes its snapshots in place."""

from __future__ import annotations

from pathlib import Path

from common import mirror
from tests.faults import mutants


def _overwrite(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    mirror._replace = _overwrite
    mutants.run("data_plane.router")
