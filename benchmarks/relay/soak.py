"""bench-relay-soak: half an hour at seven tenths of a core, with clients that cancel, vanish and read slowly.

    make bench-relay-soak [MINUTES=30] [BUSY=0.7]

gRPC and HTTP share the load. In every segment some requests are cancelled, some lose their connection (over gRPC with
all that runs on it), some are read slowly. What fails and was not made to counts as an error. The rate follows what the
router uses, so that it stays at BUSY of its core on any machine.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.markup import escape

from benchmarks.relay import build, messages
from benchmarks.relay.machine import LOAD_CORE, memory_kb, tree
from benchmarks.relay.running import run
from benchmarks.relay.scenarios import STREAMS_PER_CONNECTION
from benchmarks.relay.site import AUTHORIZATION, Site, site
from benchmarks.report import Bar, Report

_TOKENS: Final = 256
_INTERVAL_US: Final = 10_000
_ANSWER_S: Final = _TOKENS * _INTERVAL_US / 1e6
_SEGMENT_S: Final = 20.0
_OVER_S: Final = 60.0
_FIRST_TOKENS_PER_S: Final = 2_000.0
"""Before anything is known of the machine."""
_TOKENS_PER_S_MAX: Final = 100_000.0
"""No load's core carries more beside the mock engine; where it carries less, less is asked for."""
_STEP_MAX: Final = 2.0
_NEAR_STEP_MAX: Final = 1.1
"""Where half the share is reached: one segment in which the host had the core must not make the next one a burst."""
_CARRIED_MIN: Final = 0.9
"""Of the tokens; requests that are cancelled cost some."""
_REPLICAS: Final = 3

_INJECTED: Final = {
    # Shares of requests; a reset over gRPC takes some dozens of others with it.
    "grpc": ("-C", "0.05", "-T", "0.002", "-S", "0.02", "-F", "2.5", "-z", "1", "-i", "1024"),
    "http": ("-C", "0.05", "-T", "0.02", "-S", "0.02", "-F", "2.5", "-z", "0.5", "-B", "4096"),
}
_DRAINED_S_MAX: Final = 30.0
_GROWTH_MAX: Final = 5.0
_IN_FLIGHT: Final = ("fairlead_router_requests_in_flight", "fairlead_router_open_holds")


@dataclass(slots=True)
class Seen:
    """What the segments came to.

    Attributes:
        done: Requests answered.
        injected: Requests that were cancelled, reset, or lost with a connection that was.
        errors: Others that failed or had no end.
        messages: Tokens, about.
        busy: Share of a core, by segment.
        memory_kb: After each segment.
        first_error: Its text.
    """

    done: int = 0
    injected: int = 0
    errors: int = 0
    messages: int = 0
    busy: list[float] = field(default_factory=list)
    memory_kb: list[float] = field(default_factory=list)
    first_error: str = ""

    def growth_percent(self) -> float:
        """Memory of the last fifth over that of the fifth after the first one, per cent more."""
        fifth = len(self.memory_kb) // 5
        if fifth < 1:
            return math.nan
        early, late = self.memory_kb[fifth : 2 * fifth], self.memory_kb[-fifth:]
        return 100.0 * (statistics.median(late) / statistics.median(early) - 1.0)


class Soak:
    """Runs segments on our router.

    Args:
        running: The set-up, router included.
        share: Of a core it shall use.
    """

    def __init__(self, running: Site, share: float) -> None:
        assert running.router is not None
        self._site = running
        self._pid = running.router.pid
        self._share = share
        self._tokens_per_s = _FIRST_TOKENS_PER_S
        self.seen = Seen()

    async def segment(self, number: int) -> str:
        """One segment of both protocols; returns a line about it."""
        commands = [self._command(protocol, number) for protocol in ("grpc", "http")]
        found = await asyncio.gather(*map(_run, commands))
        seen = self.seen
        for each in found:
            seen.done += each["all_done"]
            seen.injected += each["all_injected"]
            seen.errors += each["all_errors"] + each["unfinished"]
            seen.messages += each["all_messages"]
            # What was injected leaves texts too; they are errors only where something is counted.
            if each["all_errors"] + each["unfinished"]:
                seen.first_error = seen.first_error or each["error"] or "no end"
        busy = statistics.fmean(each["cpu_s"] / each["window_s"] for each in found)
        seen.busy.append(busy)
        seen.memory_kb.append(memory_kb(tree(self._pid)))
        line = (
            f"segment {number + 1}: {self._tokens_per_s:,.0f} tokens/s wanted, busy {busy:.0%}, "
            f"{seen.memory_kb[-1] / 1024:.1f} MB, {seen.done:,} done, {seen.injected:,} injected, {seen.errors} errors"
        )
        carried = sum(each["messages"] / each["window_s"] for each in found) / self._tokens_per_s
        self._tokens_per_s = next_rate(self._tokens_per_s, self._share / max(busy, 0.01), carried)
        return line

    async def left_open(self) -> float:
        """Requests and holds that the router still counts once nobody asks anything any more."""
        deadline_s = time.monotonic() + _DRAINED_S_MAX
        while True:
            samples = [
                sample
                for family in text_string_to_metric_families(await self._site.metrics())
                for sample in family.samples
                if sample.name in _IN_FLIGHT
            ]
            if {sample.name for sample in samples} != set(_IN_FLIGHT):
                return math.nan
            open_now = float(sum(sample.value for sample in samples))
            if not open_now or time.monotonic() > deadline_s:
                return open_now
            await asyncio.sleep(0.5)

    def _command(self, protocol: str, number: int) -> Sequence[str]:
        grpc, site_ = protocol == "grpc", self._site
        body = site_.folder / f"soak.{protocol}.body"
        shape = (messages.MODEL, _TOKENS, _INTERVAL_US)
        body.write_bytes(messages.generate(*shape) if grpc else messages.chat(*shape))
        rate = self._tokens_per_s / 2 / _TOKENS
        connections = math.ceil(1.2 * rate * _ANSWER_S / STREAMS_PER_CONNECTION)
        path = "/fairlead.inference.v1.InferenceService/StreamGenerate" if grpc else "/v1/chat/completions"
        return [
            *("taskset", "-c", str(LOAD_CORE), str(site_.programs["load_generator"]), "-P", protocol),
            *("-p", str(site_.grpc_port if grpc else site_.http_port), "-u", path, "-b", str(body)),
            *("-H", AUTHORIZATION, "-r", str(rate), "-n", str(_TOKENS), "-s", str(2 * number + grpc)),
            *("-w", str(_ANSWER_S), "-d", str(_SEGMENT_S), "-k", str(connections)),
            *("-W", ",".join(map(str, tree(self._pid))), *_INJECTED[protocol]),
        ]


def next_rate(tokens_per_s: float, wanted: float, carried: float) -> float:
    """The rate of the next segment.

    Args:
        tokens_per_s: Of this one.
        wanted: Times the CPU time that it took.
        carried: Share of its tokens that came. Where they did not all come, others had the core, and more load would
            be overload.
    """
    most = _STEP_MAX if wanted >= _STEP_MAX else _NEAR_STEP_MAX
    step = min(wanted, most if carried >= _CARRIED_MIN else carried)
    return min(_TOKENS_PER_S_MAX, tokens_per_s * max(step, 1 / _STEP_MAX))


async def _run(command: Sequence[str]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(_ANSWER_S + _SEGMENT_S + _OVER_S):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise RuntimeError("the load generator did not end") from None
    found: dict[str, Any] = json.loads(out)
    return found


async def measure(report: Report, console: Console) -> None:
    """Soaks for MINUTES and adds what was found, whatever happens."""
    minutes = float(os.environ.get("MINUTES") or 30)
    share = float(os.environ.get("BUSY") or 0.7)
    seen, left_open, began_s = Seen(), math.nan, time.monotonic()
    try:
        async with site(build.programs(), _REPLICAS) as running:
            router = await running.start_router()
            console.print(f"the router: native {escape(running.native)}", highlight=False)
            report.add("native_modules", running.native_modules())
            soak = Soak(running, share)
            seen, number, files = soak.seen, 0, _open_files(router.pid)
            end_s = time.monotonic() + 60.0 * minutes
            while time.monotonic() < end_s:
                console.print(await soak.segment(number), highlight=False)
                number += 1
            left_open = await soak.left_open()
            report.add("open_files_more", float(_open_files(router.pid) - files))
    finally:
        if seen.first_error:
            console.print(f"the first error: {escape(seen.first_error)}", highlight=False)
        report.add("soak_minutes", (time.monotonic() - began_s) / 60.0)
        report.add("requests", float(seen.done + seen.injected + seen.errors))
        report.add("requests_injected", float(seen.injected))
        report.add("tokens", float(seen.messages))
        report.add("busy_percent", 100.0 * statistics.median(seen.busy) if seen.busy else math.nan)
        report.add("errors_not_injected", float(seen.errors) if seen.busy else math.nan, Bar(0.0))
        report.add("memory_growth_percent", seen.growth_percent(), Bar(_GROWTH_MAX))
        report.add("memory_mb", seen.memory_kb[-1] / 1024 if seen.memory_kb else math.nan)
        report.add("left_open", left_open, Bar(0.0))


def _open_files(pid: int) -> int:
    return sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in tree(pid))


if __name__ == "__main__":
    run("relay-soak", measure)
