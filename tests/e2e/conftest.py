"""A platform shared by the end-to-end tests that do not break it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.make_run import MakeRun


def _run(folder: Path, **options: object) -> Iterator[MakeRun]:
    run = MakeRun(folder / "run", **options)
    try:
        asyncio.run(run.serving())
        yield run
    finally:
        run.process.send_signal(signal.SIGTERM)
        try:
            asyncio.run(run.ends())
        finally:
            run.kill()


@pytest.fixture(scope="session")
def sim_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeRun]:
    """Everything, on two simulated replicas."""
    yield from _run(tmp_path_factory.mktemp("sim"))
