"""Measures the CPU Triton: streamed tokens per second, and what a request costs in replica-seconds.

    python -m engines.triton.measure throughput    1 and 2 replicas, 1, 8 and 32 requests at a time
    python -m engines.triton.measure cost          a grid of lengths, and the fit of the cost function

The cost of a request is the CPU time that tritonserver and its model's process spend on it, at 32 requests at a time:
a replica has one inference thread and is worth one core. CPU time, unlike the clock, hardly notices what else runs on
the machine, so a fit can be repeated. Prompts are random, so that the prefix cache never helps.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from engines.engine import EngineRequest, Prompt, Sampling
from engines.triton.adapter import TritonEngine, TritonSettings

_CONCURRENCY = 32
# Prompt and output lengths, tokens: the corners and the middle of what fits a context of 4,096.
_GRID = (
    *((16, 16), (16, 128), (16, 512), (64, 64), (256, 16), (256, 128)),
    *((512, 256), (1024, 16), (1024, 128), (1024, 512), (3072, 16), (3072, 256)),
)
_REQUESTS_PER_POINT = 64
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Point:
    """One measured length.

    Attributes:
        input_tokens: Of each prompt.
        output_tokens: Of each answer.
        replica_seconds: CPU time per request, seconds.
    """

    input_tokens: int
    output_tokens: int
    replica_seconds: float

    @property
    def features(self) -> tuple[float, float, float, float]:
        """What a, b, d and g are multiplied with."""
        i, o = self.input_tokens, self.output_tokens
        return i, o, i * i, o * (i + o / 2)


def fit(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Returns the non-negative a, b, d, g with the least relative squared error.

    Of the 15 subsets of coefficients the best one whose least-squares solution has no negative number is the optimum.
    """
    design = np.array([[feature / point.replica_seconds for feature in point.features] for point in points])
    best, best_error = np.zeros(4), float("inf")
    for size in range(1, 5):
        for chosen in itertools.combinations(range(4), size):
            solution, *_ = np.linalg.lstsq(design[:, chosen], np.ones(len(points)), rcond=None)
            error = float(np.sum((design[:, chosen] @ solution - 1) ** 2))
            if solution.min() >= 0 and error < best_error:
                best, best_error = np.zeros(4), error
                best[list(chosen)] = solution
    a, b, d, g = best.tolist()
    return a, b, d, g


def weighted_error(points: Sequence[Point], coefficients: Sequence[float]) -> float:
    """Sum of the absolute errors over the sum of the costs."""
    total = sum(point.replica_seconds for point in points)
    predicted = [sum(x * c for x, c in zip(point.features, coefficients, strict=True)) for point in points]
    return sum(abs(p - q.replica_seconds) for p, q in zip(predicted, points, strict=True)) / total


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


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its live children."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if status.parent.name == str(pid) or int(fields[1]) == pid:
            total += (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return total


async def _measure_cost(folder: Path) -> dict[str, object]:
    engine = TritonEngine(TritonSettings(folder))
    await engine.start()
    try:
        await _run([engine], (64, 64), _CONCURRENCY, _CONCURRENCY)
        points = []
        for lengths in _GRID:
            before = _cpu_seconds(engine.process_id)
            await _run([engine], lengths, _REQUESTS_PER_POINT, _CONCURRENCY)
            spent = (_cpu_seconds(engine.process_id) - before) / _REQUESTS_PER_POINT
            points.append(Point(*lengths, spent))
            sys.stderr.write(f"{points[-1]}\n")
    finally:
        await engine.stop()
    coefficients = fit(points)
    left_out = [(point, fit([other for other in points if other is not point])) for point in points]
    held_out = sum(weighted_error([point], found) * point.replica_seconds for point, found in left_out)
    return {
        "points": [asdict(point) for point in points],
        **dict(zip("abdg", coefficients, strict=True)),
        "weighted_error": weighted_error(points, coefficients),
        "weighted_error_held_out": held_out / sum(point.replica_seconds for point in points),
    }


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
    parser = argparse.ArgumentParser(prog="python -m engines.triton.measure", description=main.__doc__)
    parser.add_argument("what", choices=("throughput", "cost"))
    what = parser.parse_args(argv).what
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run((_measure_cost if what == "cost" else _measure_throughput)(Path(folder)))
    sys.stdout.write(json.dumps(measured, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
