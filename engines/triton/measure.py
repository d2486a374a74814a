"""Measures the CPU Triton: streamed tokens per second of 1 and 2 replicas, at 1, 8 and 32 requests at a time.

    python -m engines.triton.measure

Prompts are random, so that the prefix cache never helps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from engines.engine import EngineRequest, Prompt, Sampling
from engines.triton.adapter import TritonEngine, TritonSettings

_CONCURRENCY = 32


def _prompt(tokens: int, source: random.Random) -> str:
    """A prompt of exactly that many tokens: control characters are one token each in the tiny model's vocabulary."""
    return "".join(chr(source.randrange(1, 27)) for _ in range(tokens))


async def _one(engine: TritonEngine, prompt: str, output_tokens: int, number: int) -> tuple[int, int]:
    sampling = Sampling(output_tokens, temperature=1.0, seed=number, ignore_end_token=True)
    made, asked = 0, 0
    async for batch in engine.generate(EngineRequest(f"measure-{number}", Prompt(prompt), sampling)):
        made, asked = made + batch.output_tokens, batch.input_tokens or asked
    return asked, made


async def _run(engines: Sequence[TritonEngine], lengths: tuple[int, int], requests: int, concurrency: int) -> float:
    """Sends requests, so many at a time, round-robin over the engines; returns the seconds it took."""
    source = random.Random(time.time_ns())
    numbers = iter(range(requests))

    async def worker() -> None:
        for number in numbers:
            prompt = _prompt(lengths[0], source)
            counts = await _one(engines[number % len(engines)], prompt, lengths[1], source.getrandbits(48))
            if counts != lengths:
                raise AssertionError(f"asked for {lengths} tokens, got {counts}")

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return time.perf_counter() - started


async def _measure_throughput(folder: Path) -> list[dict[str, int]]:
    rows = []
    for replicas in (1, 2):
        async with AsyncExitStack() as stack:
            engines = [TritonEngine(TritonSettings(folder / f"{replicas}-{index}")) for index in range(replicas)]
            for engine in engines:
                await engine.start()
                stack.push_async_callback(engine.stop)
            await _run(engines, (64, 64), _CONCURRENCY, _CONCURRENCY)
            for concurrency in (1, 8, 32):
                lengths, requests = (64, 128), 4 * max(2, concurrency)
                seconds = await _run(engines, lengths, requests, concurrency)
                rate = requests * lengths[1] / seconds
                rows.append({"replicas": replicas, "concurrency": concurrency, "output_tokens_per_s": round(rate)})
                sys.stderr.write(f"{rows[-1]}\n")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints JSON."""
    argparse.ArgumentParser(prog="python -m engines.triton.measure", description=main.__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run(_measure_throughput(Path(folder)))
    sys.stdout.write(json.dumps(measured, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
