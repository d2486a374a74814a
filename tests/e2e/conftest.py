"""A platform shared by the end-to-end tests of a file that do not break it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from tests.e2e.make_run import MakeRun


@pytest.fixture(scope="module")
def sim_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeRun]:
    """Everything, on two simulated replicas."""
    run = MakeRun(tmp_path_factory.mktemp("sim") / "run", engine="sim", replicas=2)
    try:
        asyncio.run(run.serving())
        yield run
    finally:
        run.process.send_signal(signal.SIGTERM)
        try:
            asyncio.run(run.ends())
        finally:
            run.kill()
