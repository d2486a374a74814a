"""bench-relay: what our router costs per request and per token, beside the routers and proxies of other houses.

    make bench-relay [PHASES=unary,s32,p20k,...] [RIVALS=envoy,nginx,...] [ROUNDS=5] [SECONDS=6] [REPLICAS=3]

The metric is CPU time of the router's process tree in a window of SECONDS, over what was answered in it. The router
runs on core 1 alone; load, mock engines and the rest on core 0. In every round each scenario runs once on each target
in turn. RIVALS=none measures ours alone, NATIVE=off measures it interpreted. Every bar that is missed is reported as
missed; nothing stops at one.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from rich.console import Console
from rich.markup import escape

from benchmarks.relay import bars, build, rivals, tables
from benchmarks.relay.rounds import Results, Rounds, runs_on
from benchmarks.relay.running import run
from benchmarks.relay.scenarios import SCENARIOS, Loads
from benchmarks.relay.site import site
from benchmarks.report import ROOT, Report

PHASES: Final = (*dict.fromkeys(scenario.phase for scenario in SCENARIOS), "memory")
ROUNDS: Final = 5
SECONDS: Final = 6.0
REPLICAS: Final = 3


def wanted_phases(text: str) -> list[str]:
    """The phases that are named, separated by commas or spaces, in the order of PHASES; all where none is.

    Raises:
        SystemExit: There is no phase of a name.
    """
    named = set(text.replace(",", " ").split())
    if unknown := named - set(PHASES):
        sys.exit(f"PHASES: {', '.join(sorted(unknown))}: unknown; known: {', '.join(PHASES)}")
    return [name for name in PHASES if name in named or not named]


async def measure(report: Report, console: Console) -> None:
    """Runs what the environment asks for and adds what was found, whatever of it fails."""
    phases = wanted_phases(os.environ.get("PHASES", ""))
    chosen = rivals.wanted(os.environ.get("RIVALS", ""))
    count = int(os.environ.get("ROUNDS") or ROUNDS)
    seconds = float(os.environ.get("SECONDS") or SECONDS)
    scenarios = [scenario for scenario in SCENARIOS if scenario.phase in phases]
    results, left_out = Results(), {each.name: "not wanted" for each in rivals.RIVALS if each not in chosen}
    try:
        async with site(build.programs(), int(os.environ.get("REPLICAS") or REPLICAS)) as running:
            rounds = Rounds(running, Loads(running.programs["load_generator"], running.folder, seconds), console)
            try:
                await rounds.start([each for each in chosen if any(runs_on(each, one) for one in scenarios)], results)
                console.print(f"our router: native {escape(running.native)}", highlight=False)
                report.add("native_modules", running.native_modules())
                await rounds.run(scenarios, count, results)
            finally:
                left_out |= rounds.left_out
    finally:
        tables.show(results, scenarios, console)
        tables.write_runs(results, ROOT / "build" / "bench" / "relay-runs.json")
        bars.report(results, phases, left_out, report)
        for name, why in left_out.items():
            console.print(f"left out: {name}: {escape(why)}", highlight=False)


if __name__ == "__main__":
    run("relay", measure)
