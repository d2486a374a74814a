"""What is put on a router, in what shape, and how one run of it is measured."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.relay import messages
from benchmarks.relay.machine import LOAD_CORE, REFERENCE_STEP_US, Stolen, memory_kb, step_us, tree
from benchmarks.relay.site import AUTHORIZATION

STREAMS_PER_CONNECTION: Final = 100
"""gRPC streams at a time on one connection, as gRPC's servers usually allow."""
_SERVICE: Final = "/fairlead.inference.v1.InferenceService/"
_CHAT: Final = "/v1/chat/completions"
_RUN_OVER_S: Final = 60.0
"""More than a run of the load generator may take beyond its window."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One shape of load.

    Attributes:
        name: Part of its metrics' names.
        phase: What it runs in.
        protocol: "grpc" or "http".
        tokens: Of an answer.
        interval_us: Between them; 0: back to back.
        concurrency: Requests at a time, closed loop; 0 for an open loop.
        tokens_per_s: Of the open loop.
        per_token: CPU time is told per token, else per request.
        model: Which replicas.
        method: Of InferenceService.
        systems: Who can carry it; empty for all that speak the protocol.
        live: Streams outlast the window; the last of them are cut.
    """

    name: str
    phase: str
    protocol: str
    tokens: int
    interval_us: int = 0
    concurrency: int = 0
    tokens_per_s: float = 0.0
    per_token: bool = False
    model: str = messages.MODEL
    method: str = "StreamGenerate"
    systems: tuple[str, ...] = ()
    live: bool = False

    @property
    def live_streams(self) -> float:
        """How many are expected at a time."""
        if self.concurrency:
            return self.concurrency
        return self.tokens_per_s / self.tokens * max(0.02, self.tokens * self.interval_us / 1e6)

    @property
    def stream(self) -> bool:
        """Whether the answer is streamed."""
        return self.method == "StreamGenerate"

    def body(self) -> bytes:
        """What is sent."""
        if self.protocol == "grpc":
            as_chat = self.model == messages.OPENAI_MODEL
            return messages.generate(self.model, self.tokens, self.interval_us, chat=as_chat)
        return messages.chat(self.model, self.tokens, self.interval_us, stream=self.stream)


@dataclass(frozen=True, slots=True)
class Target:
    """Who is measured.

    Attributes:
        name: "fairlead", a rival's name, or "direct" for the mock engine itself.
        grpc_port: Where it serves gRPC.
        http_port: Where it serves HTTP.
        pid: Root of its process tree.
    """

    name: str
    grpc_port: int
    http_port: int
    pid: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One run.

    Attributes:
        raw_us: CPU time per request or token; not a number where nothing was answered.
        step_us: Of the reference loop, mean of before and after.
        stolen: Share of the router's core that the host took.
        busy: CPU time over wall time.
        done: Requests answered in the window.
        errors: Requests that failed, ever.
        unfinished: Requests without an end when patience ended.
        tokens_per_s: Carried in the window.
        ttft_ms_p50: Time to first token.
        ttft_ms_p99: Its 99th percentile.
        latency_ms_p50: Whole requests.
        memory_kb: Of the process tree after the run, or inside it where streams are live.
        live: Streams at a time, at most.
        error: The first error's text.
        engine_late_ms: How late the mock engine wrote its tokens on average: where that is much, the load's own core
            was what was measured.
    """

    raw_us: float
    step_us: float
    stolen: float
    busy: float
    done: int
    errors: int
    unfinished: int
    tokens_per_s: float
    ttft_ms_p50: float
    ttft_ms_p99: float
    latency_ms_p50: float
    memory_kb: float
    live: int
    error: str
    engine_late_ms: float = 0.0

    def raw(self) -> float:
        """CPU time as it was."""
        return self.raw_us

    def scaled(self) -> float:
        """CPU time on the reference core."""
        return self.raw_us * REFERENCE_STEP_US / self.step_us

    def first_token(self) -> float:
        """Median time to first token."""
        return self.ttft_ms_p50

    def first_token_p99(self) -> float:
        """Its 99th percentile."""
        return self.ttft_ms_p99

    @property
    def failed(self) -> bool:
        """Whether a request had no proper end."""
        return self.errors + self.unfinished > 0


def _fairlead_only(name: str, phase: str, tokens: int, interval_us: int, tokens_per_s: float, model: str) -> Scenario:
    return Scenario(name, phase, "grpc", tokens, interval_us, 0, tokens_per_s, True, model=model, systems=("fairlead",))


_FAST: Final = ("fairlead", "envoy", "nginx")
_FAST_HTTP: Final = (*_FAST, "sglang-router", "vllm-router")
_LIVE_TOKENS_PER_S: Final = 5_000
LIVE: Final = (10, 100, 1_000, 5_000)
"""Streams at a time, all at the same tokens per second together."""

SCENARIOS: Final = (
    Scenario("grpc_unary", "unary", "grpc", 1, concurrency=32, method="Generate"),
    Scenario("http_unary", "unary", "http", 1, concurrency=32, method="Generate", systems=_FAST_HTTP),
    Scenario("grpc_s32", "s32", "grpc", 32, concurrency=32),
    Scenario("http_s32", "s32", "http", 32, concurrency=32, systems=_FAST_HTTP),
    # 32 at a time would not end within a window of some seconds.
    Scenario("http_s32_by_4", "s32", "http", 32, concurrency=4, systems=("litellm",)),
    Scenario("grpc_p20k", "p20k", "grpc", 256, 10_000, 0, 20_000, True, systems=_FAST),
    # What grpc.aio can carry on a slow core.
    Scenario("grpc_p2500", "p20k", "grpc", 256, 10_000, 0, 2_500, True, systems=("grpc_aio",)),
    Scenario("http_p20k", "p20k", "http", 256, 10_000, 0, 20_000, True, systems=_FAST_HTTP),
    Scenario("grpc_p50k", "p50k", "grpc", 256, 10_000, 0, 50_000, True, systems=_FAST),
    Scenario("grpc_t50", "t50", "grpc", 32, 10_000, 0, 1_600, systems=("direct", *_FAST)),
    Scenario("http_t50", "t50", "http", 32, 10_000, 0, 1_600, systems=("direct", *_FAST_HTTP)),
    _fairlead_only("triton_p20k", "dialects", 256, 10_000, 20_000, messages.TRITON_MODEL),
    _fairlead_only("triton_p50k", "dialects", 256, 10_000, 50_000, messages.TRITON_MODEL),
    _fairlead_only("openai_p20k", "dialects", 256, 10_000, 20_000, messages.OPENAI_MODEL),
    Scenario("ticket", "ticket", "grpc", 32, concurrency=32, method="IssueTicket", systems=("fairlead",)),
    *(
        Scenario(
            f"live_{streams}",
            "live",
            "grpc",
            1_000_000,
            1_000_000 * streams // _LIVE_TOKENS_PER_S,
            concurrency=streams,
            per_token=True,
            systems=("fairlead",),
            live=True,
        )
        for streams in LIVE
    ),
)


class Loads:
    """Puts scenarios on targets.

    Args:
        program: The load generator.
        folder: For bodies.
        seconds: Window of a run.
    """

    def __init__(self, program: Path, folder: Path, seconds: float) -> None:
        self._program = program
        self._folder = folder
        self._seconds = seconds

    async def run(self, scenario: Scenario, target: Target, seed: int) -> Sample:
        """One run.

        Args:
            scenario: The shape of load.
            target: On whom.
            seed: Of arrival times; the same for all targets of a round.
        """
        pids = tree(target.pid) if target.pid else []
        command = self._command(scenario, target, pids, seed)
        before_us, stolen = step_us(), Stolen()
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        memory = asyncio.ensure_future(self._memory_inside(scenario, pids)) if scenario.live else None
        try:
            async with asyncio.timeout(self._warm_up_s(scenario) + self._seconds + _RUN_OVER_S):
                out, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise RuntimeError(f"{scenario.name} on {target.name} did not end") from None
        share = stolen.share()
        found = json.loads(out)
        kb = await memory if memory is not None else memory_kb(pids)
        return sample(scenario, found, step=(before_us + step_us()) / 2, stolen=share, kb=kb)

    def _warm_up_s(self, scenario: Scenario) -> float:
        """Until as many streams run as ever will."""
        if scenario.live:
            return 3.0 + scenario.concurrency / 1_000
        return 1.0 if scenario.concurrency else 0.5 + scenario.tokens * scenario.interval_us / 1e6

    async def _memory_inside(self, scenario: Scenario, pids: Sequence[int]) -> float:
        await asyncio.sleep(self._warm_up_s(scenario) + self._seconds / 2)
        return memory_kb(pids)

    def _command(self, scenario: Scenario, target: Target, pids: Sequence[int], seed: int) -> list[str]:
        body = self._folder / f"{scenario.name}.body"
        body.write_bytes(scenario.body())
        grpc = scenario.protocol == "grpc"
        connections = math.ceil(1.2 * scenario.live_streams / STREAMS_PER_CONNECTION)
        shape = (
            ["-c", str(scenario.concurrency), "-R", str(scenario.concurrency / 1_000)]
            if scenario.concurrency
            else ["-r", str(scenario.tokens_per_s / scenario.tokens)]
        )
        return [
            *("taskset", "-c", str(LOAD_CORE), str(self._program), "-P", scenario.protocol),
            *("-p", str(target.grpc_port if grpc else target.http_port)),
            *("-u", _SERVICE + scenario.method if grpc else _CHAT, "-b", str(body), "-H", AUTHORIZATION),
            *("-d", str(self._seconds), "-w", str(self._warm_up_s(scenario)), "-s", str(seed)),
            *("-k", str(connections), "-W", ",".join(map(str, pids))),
            *(["-x"] if scenario.live else ["-n", str(scenario.tokens if scenario.stream else 1)]),
            *shape,
        ]


def sample(scenario: Scenario, found: dict[str, Any], *, step: float, stolen: float, kb: float) -> Sample:
    """What a run came to.

    Args:
        scenario: Its shape of load.
        found: What the load generator printed.
        step: Time of a step of the reference loop, us.
        stolen: Share of the router's core that the host took.
        kb: Memory of the process tree.
    """
    done, window_s = int(found["done"]), found["window_s"]
    whole = found["all_done"] and not (found["all_errors"] or found["unfinished"] or scenario.live)
    # What ends an answer comes in messages of its own with some; tokens are what it was asked for.
    per_answer = found["all_messages"] / found["all_done"] if whole else scenario.tokens
    tokens = found["messages"] * scenario.tokens / per_answer
    units = tokens if scenario.per_token else done
    return Sample(
        raw_us=found["cpu_s"] * 1e6 / units if units else math.nan,
        step_us=step,
        stolen=stolen,
        busy=found["cpu_s"] / window_s if window_s else math.nan,
        done=done,
        errors=int(found["all_errors"]),
        unfinished=0 if scenario.live else int(found["unfinished"]),
        tokens_per_s=tokens / window_s if window_s else math.nan,
        ttft_ms_p50=found["ttft_ms_p50"],
        ttft_ms_p99=found["ttft_ms_p99"],
        latency_ms_p50=found["latency_ms_p50"],
        memory_kb=kb,
        live=int(found["live_max"]),
        error=str(found["error"]),
    )
