"""The other side of the client process: tells it what to send and collects how it ended."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.quota.processes import cpu_s
from benchmarks.report import ROOT

_ANSWER_BYTES_MAX: Final = 256 << 20
_ANSWER_S_MAX: Final = 120.0
_SEED: Final = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """A request that was admitted, and its end.

    Attributes:
        tenant: Who.
        router: Its number.
        outcome: "ok", or "failed": the stream broke or the router could not be reached.
        complete: It ended by itself with every token it was to bring.
        sent_s: When it was sent, monotonic.
        ttft_s: From there to its first token; None without one.
        ended_s: When it ended, monotonic.
        input_tokens: As the router reported; 0 where unknown.
        cached_input_tokens: Of these, found in a cache.
        output_tokens: As the router reported, or those that arrived.
        settled: Charged, mMU, as the client was told.
        estimated: Held at admission, mMU.
        true_input_tokens: What the prompt has; the client knows.
        true_output_tokens: What the answer has, told by nobody.
    """

    tenant: str
    router: int
    outcome: str
    complete: bool
    sent_s: float
    ttft_s: float | None
    ended_s: float
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    settled: int
    estimated: int
    true_input_tokens: int
    true_output_tokens: int


@dataclass(slots=True)
class Ended:
    """What ended since it was last asked.

    Attributes:
        samples: Admitted requests.
        refused: Refusals by tenant.
        in_flight: Requests under way now.
    """

    samples: list[Sample] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0


class Client:
    """The client process.

    Args:
        process: It.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def order(self, **order: Any) -> dict[str, Any]:
        """Sends one order and waits until it is carried out."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Reads one answer.

        Raises:
            RuntimeError: The client has ended.
        """
        assert self._process.stdout is not None
        async with asyncio.timeout(_ANSWER_S_MAX):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the client process has ended; its log is client.log")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def streams(self, counts: Mapping[str, int]) -> None:
        """Sets how many requests of each tenant are kept going."""
        for tenant, count in counts.items():
            await self.order(do="streams", tenant=tenant, count=count)

    async def arrivals(self, rates_per_s: Mapping[str, float]) -> None:
        """Sets how many requests of each tenant arrive per second."""
        for tenant, per_s in rates_per_s.items():
            await self.order(do="arrivals", tenant=tenant, per_s=per_s)

    async def routers(self, addresses: Sequence[str]) -> None:
        """Sets where requests go."""
        await self.order(do="routers", addresses=list(addresses))

    async def ended(self) -> Ended:
        """What ended since this was last called."""
        answer = await self.order(do="samples")
        samples = [Sample(*row) for row in answer["samples"]]
        return Ended(samples, Counter(answer["refused"]), answer["in_flight"])

    def cpu_s(self) -> float:
        """CPU time it has used, seconds."""
        return cpu_s(self._process.pid)


@asynccontextmanager
async def client(keys: Mapping[str, str], model: str, log_path: Path) -> AsyncIterator[Client]:
    """Runs a client process.

    Args:
        keys: API keys by tenant.
        model: What is asked.
        log_path: Where its errors go.
    """
    facts = json.dumps({"keys": dict(keys), "model": model, "seed": _SEED})
    with log_path.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.quota.client",
            cwd=ROOT,
            env=os.environ | {"BENCH_QUOTA_CLIENT": facts},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=_ANSWER_BYTES_MAX,
            start_new_session=True,
        )
    running = Client(process)
    try:
        await running.answer()
        yield running
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(5.0):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
