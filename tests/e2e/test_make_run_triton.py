"""`make run` on real Triton servers, and what a killed launcher leaves of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import fairlead
from engines.triton import environment
from tests.e2e.make_run import END_S, MakeRun
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.triton,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not environment.is_current(environment.default_directory()),
        reason=environment.unsupported_reason() or "no Triton environment: make test makes it",
    ),
]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[MakeRun]:
    """A launcher with two Triton replicas."""
    run = MakeRun(tmp_path / "run", engine="triton")
    yield run
    run.kill()


def _shared_memory(agents: list[int]) -> list[str]:
    prefixes = tuple(f"fairlead-{pid}-" for pid in agents)
    return [region.name for region in Path("/dev/shm").iterdir() if region.name.startswith(prefixes)]


async def test_serves_and_leaves_nothing_even_when_killed(run: MakeRun) -> None:
    """Real tokens; a killed agent comes back; after a SIGKILL of the launcher no process and no shared memory stays."""
    await run.serving()
    facts, first = run.document(), run.pids()
    async with fairlead.AsyncClient(facts["grpc"], api_key=facts["tenants"]["acme"]["key"], tls=False) as client:
        answer = await client.generate("Once upon a time", model="tiny-llama", max_tokens=8)
        assert answer.text
        assert answer.usage.output_tokens == 8

    os.kill(first["replica-1"], signal.SIGKILL)
    await eventually(lambda: run.pids().get("replica-1", first["replica-1"]) != first["replica-1"], END_S)
    agents = [first["replica-1"], first["replica-2"], run.pids()["replica-1"]]
    assert _shared_memory(agents)

    run.process.kill()
    run.process.wait()
    await eventually(lambda: not run.leftovers(), END_S, "every process ends with the launcher")
    await eventually(lambda: not _shared_memory(agents), END_S, "no shared memory is left")
