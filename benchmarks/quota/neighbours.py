"""Do other tenants notice when one asks for ten times its quota? Live, on the same replicas and routers."""

from __future__ import annotations

from random import Random
from typing import Final

from benchmarks.quota.bench import QUOTA, TENANTS, Bench, Machine
from benchmarks.quota.books import percentile
from benchmarks.quota.remote import Client, client
from benchmarks.quota.site import MODEL
from benchmarks.quota.workload import lengths
from benchmarks.report import Bar
from model_units.cost import cost
from model_units.profiles import built_in_profiles

_DRAWN: Final = 4_000
OFFERED: Final = (1.0, 10.0, 1.0, 10.0)
OTHERS_OFFERED: Final = 0.6
WINDOW_S: Final = 20.0
_SETTLING_S: Final = 3.0

DEFINITIONS: Final = f"""\
[bold]Neighbours[/]: one tenant sends 1, 10, 1 and 10 times what its quota carries, at random times and from a process
of its own; the other {len(TENANTS) - 1} send {OTHERS_OFFERED:g} of theirs throughout. Their p95 time to first token in
the windows of {WINDOW_S:g} s at ten times, over that at one; bar <= 1.25."""


async def measure(bench: Bench) -> None:
    """Runs the four windows."""
    bench.console.print(DEFINITIONS)
    site = bench.site
    await bench.reserve(dict.fromkeys(TENANTS, QUOTA))
    addresses = [address.grpc for address in site.addresses]
    await bench.client.routers(addresses)
    async with client(site.keys, MODEL.model_id, site.log_dir / "aggressor.log") as aggressor:
        await aggressor.routers(addresses)
        bench.more_clients = [aggressor]
        await _windows(bench, aggressor)
        bench.more_clients = []


async def _windows(bench: Bench, attacker: Client) -> None:
    aggressor, *others = TENANTS
    carried_per_s = QUOTA / 60 / _request_milli_mu()
    await bench.client.arrivals(dict.fromkeys(others, OTHERS_OFFERED * carried_per_s))
    first_tokens: dict[float, list[float]] = {times: [] for times in OFFERED}
    by_window: list[float] = []
    own: list[float] = []
    refused = sent = 0
    for times in OFFERED:
        await attacker.arrivals({aggressor: times * carried_per_s})
        await bench.wait(f"aggressor at {times:g}x", _SETTLING_S)
        await bench.collect()
        machine = Machine(bench)
        await bench.wait(f"aggressor at {times:g}x", WINDOW_S)
        ended = await bench.collect()
        bench.samples += (await attacker.ended()).samples
        found = [sample.ttft_s for sample in ended.samples if sample.ttft_s is not None]
        first_tokens[times] += found
        by_window.append(percentile(found, 0.95))
        refused += sum(ended.refused[tenant] for tenant in others)
        sent += len(ended.samples)
        own.append(machine.shares()[1])
    await attacker.arrivals({aggressor: 0.0})
    await bench.drain()
    bench.samples += (await attacker.ended()).samples
    calm, attacked = percentile(first_tokens[1.0], 0.95), percentile(first_tokens[10.0], 0.95)
    bench.report.add("live_neighbours_ttft_p95_at_1x_ms", 1e3 * calm)
    bench.report.add("live_neighbours_ttft_p95_at_10x_ms", 1e3 * attacked)
    bench.report.add("live_neighbours_ttft_p95_ratio", attacked / calm, Bar(1.25))
    pairs = [attacked_ / calm_ for calm_, attacked_ in zip(by_window[::2], by_window[1::2], strict=True)]
    bench.report.add("live_neighbours_ttft_p95_ratio_pairs_min", min(pairs))
    bench.report.add("live_neighbours_ttft_p95_ratio_pairs_max", max(pairs))
    bench.report.add("live_neighbours_own_cpu_at_1x_percent", 50 * (own[0] + own[2]))
    bench.report.add("live_neighbours_own_cpu_at_10x_percent", 50 * (own[1] + own[3]))
    bench.report.add("live_neighbours_refused_percent", 100 * refused / max(1, refused + sent))


def _request_milli_mu() -> float:
    """What a request costs on average, mMU."""
    profile = built_in_profiles().resolve("", MODEL.engine.hardware)
    drawn = lengths(_DRAWN, Random(0))
    return sum(cost(profile, input_tokens=into, output_tokens=out).total_milli_mu for into, out in drawn) / _DRAWN
