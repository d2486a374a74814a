"""Do other tenants notice when one asks for ten times its quota? Live, on the same replicas and routers."""

from __future__ import annotations

from typing import Final

from benchmarks.quota.bench import QUOTA, TENANTS, Bench
from benchmarks.quota.books import percentile
from benchmarks.report import Bar

AGGRESSOR_QUOTA: Final = 4 * QUOTA
OFFERED: Final = (1.0, 10.0, 1.0, 10.0)
OTHERS_OFFERED: Final = 0.6
WINDOW_S: Final = 20.0
_SETTLING_S: Final = 3.0

DEFINITIONS: Final = f"""\
[bold]Neighbours[/]: one tenant with four times the others' quota sends 1, 10, 1 and 10 times what that quota carries,
at random times; the other {len(TENANTS) - 1} send {OTHERS_OFFERED:g} of theirs throughout. Their p95 time to first
token in the windows of {WINDOW_S:g} s at ten times, over that at one; bar <= 1.25."""


async def measure(bench: Bench, request_milli_mu: float) -> None:
    """Runs the four windows.

    Args:
        bench: The run.
        request_milli_mu: What a request costs on average.
    """
    bench.console.print(DEFINITIONS)
    aggressor, *others = TENANTS
    await bench.site.set_utilization(0.8)
    await bench.reserve(dict.fromkeys(others, QUOTA))
    await bench.reserve({aggressor: AGGRESSOR_QUOTA})
    await bench.client.routers([address.grpc for address in bench.site.addresses])
    await bench.client.arrivals(dict.fromkeys(others, OTHERS_OFFERED * QUOTA / 60 / request_milli_mu))
    first_tokens: dict[float, list[float]] = {times: [] for times in OFFERED}
    by_window: list[float] = []
    refused = sent = 0
    for times in OFFERED:
        await bench.client.arrivals({aggressor: times * AGGRESSOR_QUOTA / 60 / request_milli_mu})
        await bench.wait(f"aggressor at {times:g}x", _SETTLING_S)
        await bench.collect()
        await bench.wait(f"aggressor at {times:g}x", WINDOW_S)
        ended = await bench.collect()
        found = [s.ttft_s for s in ended.samples if s.tenant != aggressor and s.ttft_s is not None]
        first_tokens[times] += found
        by_window.append(percentile(found, 0.95))
        refused += sum(ended.refused[tenant] for tenant in others)
        sent += sum(sample.tenant != aggressor for sample in ended.samples)
    await bench.drain()
    calm, attacked = percentile(first_tokens[1.0], 0.95), percentile(first_tokens[10.0], 0.95)
    bench.report.add("live_neighbours_ttft_p95_at_1x_ms", 1e3 * calm)
    bench.report.add("live_neighbours_ttft_p95_at_10x_ms", 1e3 * attacked)
    bench.report.add("live_neighbours_ttft_p95_ratio", attacked / calm, Bar(1.25))
    pairs = [attacked_ / calm_ for calm_, attacked_ in zip(by_window[::2], by_window[1::2], strict=True)]
    bench.report.add("live_neighbours_ttft_p95_ratio_pairs_min", min(pairs))
    bench.report.add("live_neighbours_ttft_p95_ratio_pairs_max", max(pairs))
    bench.report.add("live_neighbours_refused_percent", 100 * refused / max(1, refused + sent))
