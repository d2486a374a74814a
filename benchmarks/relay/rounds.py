"""Rounds: in each, every scenario runs once on every target, one after another; what was found of all of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import socket
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from rich.console import Console
from rich.markup import escape

from benchmarks.quota.processes import Process
from benchmarks.relay import messages, rivals
from benchmarks.relay.machine import ROUTER_CORE, memory_kb, tree
from benchmarks.relay.ports import quiet_ports
from benchmarks.relay.rivals import MissingError, Place, Rival
from benchmarks.relay.scenarios import Loads, Sample, Scenario, Target
from benchmarks.relay.site import Site
from deploy.local.ports import HOST

OURS: Final = "fairlead"
DIRECT: Final = "direct"
_RIVAL_START_S_MAX: Final = 240.0
"""LiteLLM takes half of it on a slow core."""
_PROBE_S: Final = 20.0
_POLL_S: Final = 0.2


def runs_on(rival: Rival, scenario: Scenario) -> bool:
    """Whether a scenario is run on a rival."""
    speaks = rival.grpc if scenario.protocol == "grpc" else rival.http
    return speaks and (not scenario.systems or rival.name in scenario.systems)


class Results:
    """Samples by scenario and target, in the order of rounds; a run that failed is None."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str], list[Sample | None]] = {}
        self.idle_kb = math.nan

    def add(self, scenario: str, target: str, sample: Sample | None) -> None:
        """Adds a run."""
        self.samples.setdefault((scenario, target), []).append(sample)

    def of(self, scenario: str, target: str, value: Callable[[Sample], float]) -> list[float]:
        """A value of all runs that came to something."""
        runs = self.samples.get((scenario, target), [])
        return [value(each) for each in runs if each is not None and not math.isnan(value(each))]

    def median(self, scenario: str, target: str, value: Callable[[Sample], float]) -> float:
        """Its median; not a number where there is none."""
        found = self.of(scenario, target, value)
        return statistics.median(found) if found else math.nan

    def ratio(self, scenario: str, rival: str, rival_scenario: str = "") -> float:
        """CPU time of ours over a rival's: the median over rounds, each round by itself as the machine was then."""
        ours = self.samples.get((scenario, OURS), [])
        theirs = self.samples.get((rival_scenario or scenario, rival), [])
        both = [
            (mine, other) for mine, other in zip(ours, theirs, strict=False) if mine is not None and other is not None
        ]
        # The scaled times, since a core may have changed its speed between two runs of one round.
        ratios = [mine.scaled() / other.scaled() for mine, other in both if other.scaled() > 0]
        found = [each for each in ratios if not math.isnan(each)]
        return statistics.median(found) if found else math.nan


class Rounds:
    """Starts who is measured and runs rounds.

    Args:
        site: The set-up.
        loads: Runs one scenario on one target.
        console: Told what happens.
    """

    def __init__(self, site: Site, loads: Loads, console: Console) -> None:
        self._site = site
        self._loads = loads
        self._console = console
        self.left_out: dict[str, str] = {}
        self._targets: dict[str, Target] = {}
        self._speaks: dict[str, set[str]] = {}

    async def start(self, wanted: Iterable[Rival], results: Results) -> None:
        """Starts our router, alone at first, so that its memory is known before any request, then the rivals."""
        site = self._site
        router = await site.start_router()
        results.idle_kb = memory_kb(tree(router.pid))
        self._add(OURS, Target(OURS, site.grpc_port, site.http_port, router.pid), grpc=True, http=True)
        port = site.replica_ports[0]
        self._add(DIRECT, Target(DIRECT, port, port, 0), grpc=True, http=True)
        for rival in wanted:
            try:
                await asyncio.to_thread(rivals.install, rival)
                self._add(rival.name, await self._started(rival), grpc=rival.grpc, http=rival.http)
            except MissingError as error:
                self.left_out[rival.name] = str(error)
                self._console.print(f"[yellow]left out: {rival.name}: {escape(str(error))}[/]", highlight=False)

    def _add(self, name: str, target: Target, *, grpc: bool, http: bool) -> None:
        self._targets[name] = target
        self._speaks[name] = {each for each, does in (("grpc", grpc), ("http", http)) if does}

    async def _started(self, rival: Rival) -> Target:
        grpc_port, http_port, prometheus_port = quiet_ports(3)
        folder = self._site.folder / rival.name
        folder.mkdir(parents=True)
        upstreams = [f"{HOST}:{port}" for port in self._site.replica_ports]
        command = rival.command(Place(folder, grpc_port, http_port, upstreams, prometheus_port))
        process = self._site.run(rival.name, command, core=ROUTER_CORE)
        deadline_s = time.monotonic() + _RIVAL_START_S_MAX
        there = partial(_answers, http_port) if rival.http else partial(_listens, grpc_port)
        while not await asyncio.to_thread(there):
            if not process.running or time.monotonic() > deadline_s:
                self._site.processes.remove(process)
                await process.stop()
                raise MissingError(f"it does not start: {_words(process)}")
            await asyncio.sleep(_POLL_S)
        return Target(rival.name, grpc_port, http_port, process.pid)

    async def run(self, scenarios: Sequence[Scenario], count: int, results: Results) -> None:
        """Runs rounds; a run that fails is told and does not keep the others from being made."""
        for number in range(count):
            for scenario in scenarios:
                for target in self._on(scenario):
                    sample = await self._one(scenario, target, number, results)
                    self._tell(number, scenario, target, sample)

    def _on(self, scenario: Scenario) -> list[Target]:
        named = scenario.systems or tuple(name for name in self._targets if name != DIRECT)
        return [
            target
            for name, target in self._targets.items()
            if name in named and scenario.protocol in self._speaks[name]
        ]

    async def _one(self, scenario: Scenario, target: Target, number: int, results: Results) -> Sample | None:
        sample: Sample | None = None
        try:
            await self._site.mock_stats()
            sample = await self._loads.run(scenario, target, seed=number + 1)
            late_ms = float(json.loads(await self._site.mock_stats())["late_ms_mean"])
            sample = dataclasses.replace(sample, engine_late_ms=late_ms)
        except Exception as error:  # noqa: BLE001  # one run must not keep the others from being made
            self._console.print(f"[red]{scenario.name} on {target.name}: {escape(repr(error))}[/]", highlight=False)
        results.add(scenario.name, target.name, sample)
        return sample

    def _tell(self, number: int, scenario: Scenario, target: Target, sample: Sample | None) -> None:
        if sample is None:
            return
        failed = f" [red]errors {sample.errors}, unfinished {sample.unfinished}: {escape(sample.error)}[/]"
        self._console.print(
            f"round {number + 1} {scenario.name:12} {target.name:14} {sample.raw_us:10.1f} us"
            f" ({sample.scaled():8.1f} scaled, step {sample.step_us:.3f}, stolen {sample.stolen:4.0%})"
            f"  busy {sample.busy:4.0%}  {sample.tokens_per_s:7.0f} tokens/s"
            f"  TTFT {sample.ttft_ms_p50:8.2f} / {sample.ttft_ms_p99:8.2f} ms"
            f"  engine late {sample.engine_late_ms:5.2f} ms" + (failed if sample.failed else ""),
            highlight=False,
        )


def _answers(port: int) -> bool:
    """Whether a chat request is answered there: some listen long before, and some look for their replicas first."""
    headers = {"Content-Type": "application/json"}
    body = messages.chat(messages.MODEL, 1, 0)
    request = urllib.request.Request(f"http://{HOST}:{port}/v1/chat/completions", data=body, headers=headers)
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=_PROBE_S) as answer:
        return b"[DONE]" in answer.read()
    return False


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=0.5):
        return True
    return False


def _words(process: Process) -> str:
    return process.last_words().strip()[-400:]
