"""Do other tenants notice when one asks for ten times its quota? Live, on the same replicas and routers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from benchmarks.quota.bench import QUOTA, TENANTS, Bench, Machine
from benchmarks.quota.books import percentile
from benchmarks.quota.remote import Client, client
from benchmarks.quota.site import MODEL
from benchmarks.quota.workload import lengths
from model_units.cost import cost
from model_units.profiles import built_in_profiles

_DRAWN: Final = 4_000
OTHERS_OFFERED: Final = 0.6
WINDOW_S: Final = 15.0
_SETTLING_S: Final = 3.0
_PAIRS: Final = ((1, 2), (4, 1))
"""(the aggressor's quota over the others', windows at one and at ten times it); the first has the bar."""

DEFINITIONS: Final = f"""\
[bold]Neighbours[/]: one tenant sends 1, 10, 1 and 10 times what its quota carries, at random times and from a process
of its own; the other {len(TENANTS) - 1} send {OTHERS_OFFERED:g} of theirs throughout. Their p95 time to first token of
what they send in the windows of {WINDOW_S:g} s at ten times, whenever it ends, over that at one; bar <= 1.25. Once more
with four times the quota for the aggressor, without a bar: what it is owed loads the replicas more."""


@dataclass(slots=True)
class Window:
    """One window.

    Attributes:
        times: What the aggressor sends over its quota.
        begin_s: Monotonic.
        end_s: Monotonic.
        refused: Of the others' requests.
        own_cpu: Share of all cores that this benchmark used.
        first_tokens_s: The others' times to first token; infinite where none came.
    """

    times: float
    begin_s: float = 0.0
    end_s: float = 0.0
    refused: int = 0
    own_cpu: float = 0.0
    first_tokens_s: list[float] = field(default_factory=list)

    @property
    def p95_s(self) -> float:
        """The 95th percentile of them."""
        return percentile(self.first_tokens_s, 0.95)


async def measure(bench: Bench) -> None:
    """Runs the windows."""
    bench.console.print(DEFINITIONS)
    site = bench.site
    await bench.reserve(dict.fromkeys(TENANTS, QUOTA))
    addresses = [address.grpc for address in site.addresses]
    await bench.client.routers(addresses)
    async with client(site.keys, MODEL.model_id, site.log_dir / "aggressor.log") as aggressor:
        await aggressor.routers(addresses)
        bench.more_clients = [aggressor]
        try:
            for factor, repeats in _PAIRS:
                await bench.reserve({TENANTS[0]: factor * QUOTA})
                windows = await _windows(bench, aggressor, factor, repeats)
                _add(bench, "live_neighbours" if factor == 1 else f"live_neighbours_{factor}x_quota", windows)
        finally:
            bench.more_clients = []
            await bench.reserve({TENANTS[0]: QUOTA})


async def _windows(bench: Bench, attacker: Client, factor: int, repeats: int) -> list[Window]:
    """Windows at one and at ten times the aggressor's quota in turn, with all that was sent in them."""
    aggressor, *others = TENANTS
    carried_per_s = QUOTA / 60 / _request_milli_mu()
    begun = len(bench.samples)
    await bench.client.arrivals(dict.fromkeys(others, OTHERS_OFFERED * carried_per_s))
    windows = [Window(times) for _ in range(repeats) for times in (1.0, 10.0)]
    for window in windows:
        await attacker.arrivals({aggressor: window.times * factor * carried_per_s})
        await bench.wait(f"aggressor at {window.times:g}x", _SETTLING_S)
        await bench.collect()
        machine, window.begin_s = Machine(bench), time.monotonic()
        await bench.wait(f"aggressor at {window.times:g}x", WINDOW_S)
        window.end_s, window.own_cpu = time.monotonic(), machine.shares()[1]
        ended = await bench.collect()
        window.refused = sum(ended.refused[tenant] for tenant in others)
    await attacker.arrivals({aggressor: 0.0})
    # Not before everything has ended is it known what was sent in a window: the slowest would be missing.
    await bench.drain()
    for window in windows:
        window.first_tokens_s = [
            math.inf if sample.ttft_s is None else sample.ttft_s
            for sample in bench.samples[begun:]
            if window.begin_s <= sample.sent_s < window.end_s
        ]
    bench.samples += (await attacker.ended()).samples
    return windows


def _add(bench: Bench, name: str, windows: Sequence[Window]) -> None:
    calm, wild = ([w for w in windows if w.times == times] for times in (1.0, 10.0))
    p95_s = [percentile([value for w in group for value in w.first_tokens_s], 0.95) for group in (calm, wild)]
    bench.add(f"{name}_ttft_p95_at_1x_ms", 1e3 * p95_s[0])
    bench.add(f"{name}_ttft_p95_at_10x_ms", 1e3 * p95_s[1])
    bench.add(f"{name}_ttft_p95_ratio", p95_s[1] / p95_s[0])
    pairs = [attacked.p95_s / before.p95_s for before, attacked in zip(calm, wild, strict=True)]
    if len(pairs) > 1:
        bench.add(f"{name}_ttft_p95_ratio_pairs_min", min(pairs))
        bench.add(f"{name}_ttft_p95_ratio_pairs_max", max(pairs))
    for group, times in ((calm, 1), (wild, 10)):
        sent = sum(w.refused + len(w.first_tokens_s) for w in group)
        bench.add(f"{name}_own_cpu_at_{times}x_percent", 100 * sum(w.own_cpu for w in group) / len(group))
        bench.add(f"{name}_others_refused_at_{times}x_percent", 100 * sum(w.refused for w in group) / max(1, sent))


def _request_milli_mu() -> float:
    """What a request costs on average, mMU."""
    profile = built_in_profiles().resolve("", MODEL.engine.hardware)
    drawn = lengths(_DRAWN, Random(0))
    return sum(cost(profile, input_tokens=into, output_tokens=out).total_milli_mu for into, out in drawn) / _DRAWN
