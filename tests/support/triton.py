"""A real Triton with the tiny model for tests. Skips where its environment is not installed, and says what to run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from engines.engine import EngineRequest, Prompt, Sampling, TokenBatch
from engines.triton.adapter import TritonEngine, TritonSettings
from engines.triton.environment import TritonEnvironmentError, default_directory, open_environment
from engines.triton.guard import SHARED_MEMORY

TRITON_START_S: Final = 180.0
"""A Triton with the tiny model has started by then: 5 to 8 s, and 45 s on a machine that was lent little of itself."""


def require_triton() -> None:
    """Skips the test where the Triton environment is missing or impossible."""
    try:
        open_environment(default_directory())
    except TritonEnvironmentError as error:
        pytest.skip(str(error))


@asynccontextmanager
async def running_engine(folder: Path, **settings: Any) -> AsyncIterator[TritonEngine]:
    """A started engine with its files below `folder`; stopped for certain.

    Args:
        folder: A folder of the test.
        settings: Fields of TritonSettings that differ from their defaults.
    """
    require_triton()
    engine = TritonEngine(TritonSettings(**{"work_directory": folder, "start_timeout_s": TRITON_START_S, **settings}))
    await engine.start()
    try:
        yield engine
    except BaseException:
        sys.stderr.write(log_of(folder))
        raise
    finally:
        await engine.stop()


def log_of(folder: Path) -> str:
    """The end of the log of a Triton with its files below `folder`."""
    return "\n".join(path.read_text(errors="replace")[-3_000:] for path in sorted(folder.glob("**/triton.log")))


_counter = iter(range(1, 1_000_000))


def request(prompt: str = "hello world", max_tokens: int = 16, **sampling: Any) -> EngineRequest:
    """A request with an id of its own."""
    return EngineRequest(f"test-{next(_counter)}", Prompt(text=prompt), Sampling(max_tokens=max_tokens, **sampling))


async def collect(engine: TritonEngine, what: EngineRequest) -> list[TokenBatch]:
    """All batches of a request."""
    return [batch async for batch in engine.generate(what)]


def text_of(batches: list[TokenBatch]) -> str:
    """The text of a finished request."""
    return "".join(batch.text for batch in batches)


def tokens_of(batches: list[TokenBatch]) -> int:
    """The output tokens of a finished request."""
    return sum(batch.output_tokens for batch in batches)


async def counters(engine: TritonEngine) -> dict[str, float]:
    """The CPU backend's own counters, read from Triton's metrics: steps_total, tokens_total, requests, ..."""
    text = await asyncio.to_thread(_read, f"http://{engine.metrics_address}/metrics")
    prefix = "fairlead_engine_"
    lines = [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children of a process, zombies left out."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def process_exists(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def shared_memory_of(agent_pid: int) -> list[str]:
    """Shared memory regions of the tritonservers that a process has started."""
    return [region.name for region in SHARED_MEMORY.glob(f"fairlead-{agent_pid}-*")]


def kill(pid: int) -> None:
    """Kills a process at once."""
    os.kill(pid, signal.SIGKILL)
