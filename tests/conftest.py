"""Fixtures every test can use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import EtcdServer


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """A fresh real etcd server."""
    server = EtcdServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()
