"""Fixtures of the control plane's tests."""

from __future__ import annotations

import pytest

from common.memory_store import MemoryStore
from tests.unit.control_plane.sharder_lab import put_model


@pytest.fixture
async def store() -> MemoryStore:
    """A store with one model."""
    store = MemoryStore()
    await put_model(store)
    return store
