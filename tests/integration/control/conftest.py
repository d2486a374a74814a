"""Fixtures of the control side's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.control.side import Side
from tests.support.etcd import EtcdServer


@pytest.fixture
async def side(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Side]:
    """The control side, nothing started yet."""
    side = Side(etcd, tmp_path)
    try:
        yield side
    finally:
        await side.close()
