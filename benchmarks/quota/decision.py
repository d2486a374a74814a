"""What one request's quota decision costs the router in CPU time, whole and by its parts, on the router's real objects.

python -m benchmarks.quota.decision

One decision is everything the router does for one request about quota, in the order of `data_plane/router/flow.py`:
remember it in the decision log; estimate, note as wanted, hold, look at the bucket, note whether quota is short; one
extension, as for a stream that outran its estimate; price the true counts, settle, note as used, count it in the usage
book and in the journal on disk, look again; learn from the usage. On top comes its part of the report to the rate
limiter: one a second, at REQUESTS_PER_S. The clock is read as often as the router reads it. Requests overlap: 128 are
admitted before the first of them is extended, then all are settled. In half of all decisions quota is short.

CPU time, because a busy machine only ever adds; still, neighbours slow a core down, so a fixed loop of plain Python
runs between the rounds and its time is printed beside. Medians of interleaved rounds; the spread is least and greatest.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from common.clock import SystemClock
from data_plane.router.config import RouterConfig
from data_plane.router.core import pricing
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.decisions import DecisionLog
from data_plane.router.core.demand import Demand
from data_plane.router.core.holds import BucketKey, Hold, Holds, LeaseTerms
from data_plane.router.core.pricing import Price, Pricing
from data_plane.router.core.usage import Counts
from data_plane.router.exchange import Receipt, Usage
from data_plane.router.usage_desk import UsageDesk
from data_plane.router.usage_journal import UsageJournal
from model_units.length import OutputLengthEstimator, next_covered_tokens
from model_units.profiles import built_in_profiles
from model_units.text import BytesPerToken

FEW_TENANTS: Final = 8
MANY_TENANTS: Final = 5_000
ROUNDS: Final = 15
IN_FLIGHT: Final = 128
REQUESTS: Final = 32 * IN_FLIGHT

REQUESTS_PER_S: Final = 1_000
"""More than a router process relays today, streams included; with fewer each carries a larger part of the report."""

_DECISIONS_KEPT: Final = RouterConfig.decisions_kept_max
_MODEL: Final = "llama"
_BYTES_PER_TOKEN: Final = 4.0
_REFERENCE_STEPS: Final = 100_000
_SEED: Final = 4
_NS_PER_US: Final = 1_000

PARTS: Final = ("remember", "estimate", "hold", "extend", "settle", "observe")

Times = dict[str, float]
"""Microseconds of CPU by what was measured."""


class Request(NamedTuple):
    """One request, and how it will turn out.

    Attributes:
        key: Whose, on which model.
        prompt_bytes: Length of the prompt.
        messages: Turns.
        max_tokens: Its limit.
        input_tokens: What the engine will count.
        output_tokens: What it will produce.
        cached_tokens: What will be found in the prefix cache.
    """

    key: BucketKey
    prompt_bytes: int
    messages: int
    max_tokens: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int


class Router:
    """The router's quota side, with all tenants known, and requests for it.

    Args:
        tenants: How many.
        state_dir: Where its usage journal lies.
    """

    def __init__(self, tenants: int, state_dir: Path) -> None:
        self.random = Random(_SEED)
        self.profile = built_in_profiles().default_for("h100")
        self.pricing = Pricing(OutputLengthEstimator(), BytesPerToken())
        self.holds = Holds()
        self.demand = Demand()
        clock = SystemClock()
        self.clock, self.wall = clock.monotonic_ns, clock.wall_ns
        journal = UsageJournal(state_dir, router_id="router-1", incarnation_id=f"of-{tenants}")
        self.usage = UsageDesk(clock, journal)
        self.decisions: DecisionLog[Receipt] = DecisionLog(_DECISIONS_KEPT)
        self.names = map("{:024x}".format, count())
        self.keys: list[BucketKey] = [(f"tenant-{number}", _MODEL) for number in range(tenants)]
        now_ns = self.clock()
        terms = LeaseTerms(600_000_000, 600_000_000, 1_000_000, 1_800_000_000)
        self.holds.apply(dict.fromkeys(self.keys, terms), expires_ns=now_ns + 10**15, now_ns=now_ns)
        self.requests = [self._request(self.random.choice(self.keys)) for _ in range(REQUESTS)]
        for key in self.keys:
            request = self._request(key)
            self.demand.wanted(key, 1, now_ns)
            self.observe(request)

    def _request(self, key: BucketKey) -> Request:
        random = self.random
        size = int(random.lognormvariate(7.5, 1.0)) + 1
        made = int(random.lognormvariate(5.0, 1.0)) + 1
        read = size // 4 + 8
        return Request(key, size, random.randrange(1, 6), made + 512, read, made, random.randrange(read))

    def remember(self, request: Request) -> Receipt:
        """Begins the record of a request and keeps it for those who ask why."""
        receipt = Receipt(next(self.names), self.clock(), self.wall(), *request.key)
        self.decisions.remember(receipt)
        return receipt

    def estimate(self, request: Request) -> Price:
        """Prices a request before it runs."""
        tenant_id, model_id = request.key
        return self.pricing.estimate(
            self.profile,
            tenant_id=tenant_id,
            model_id=model_id,
            prompt_bytes=request.prompt_bytes,
            messages=request.messages,
            max_tokens=request.max_tokens,
            runs_to_max=False,
            bytes_per_token_start=_BYTES_PER_TOKEN,
        )

    def hold(self, request: Request, price: Price, receipt: Receipt) -> Hold:
        """Notes it as wanted, holds its price, looks at the bucket, and in half of all cases notes a shortage."""
        now_ns = self.clock()
        amount = price.cost.total_milli_mu
        self.demand.wanted(request.key, amount, now_ns)
        hold = self.holds.hold(request.key, amount, now_ns)
        receipt.price, receipt.estimated_milli_mu = price, amount
        receipt.quota = receipt.bucket = view = self.holds.view(request.key, now_ns)
        # Quota is never short in a benchmark of thousands of requests: the other half of the test decides.
        if 2 * view.level_milli_mu < view.burst_milli_mu or request.messages % 2:
            self.demand.short(request.key, now_ns)
        receipt.admitted, receipt.held_milli_mu = True, amount
        if not isinstance(hold, Hold):
            raise TypeError("the benchmark's quota is never used up")
        return hold

    def extend(self, request: Request, price: Price, hold: Hold) -> None:
        """Holds more, as after the first token beyond the estimate."""
        covered_tokens = next_covered_tokens(price.output_tokens + 1, request.max_tokens + price.output_tokens)
        covered = pricing.settled(self.profile, price.input_tokens, covered_tokens, 0)
        more = covered.total_milli_mu - hold.amount_milli_mu
        if more > 0:
            now_ns = self.clock()
            self.holds.extend(hold, more, now_ns)
            self.demand.wanted(request.key, more, now_ns)

    def settle(self, request: Request, hold: Hold, receipt: Receipt) -> None:
        """Prices the true counts, settles, notes it as used, writes it into book and journal, looks at the bucket."""
        now_ns = self.clock()
        cost = pricing.settled(self.profile, request.input_tokens, request.output_tokens, request.cached_tokens)
        total = cost.total_milli_mu
        self.holds.settle(hold, total, now_ns)
        self.demand.used(request.key, total, now_ns)
        receipt.usage = Usage(request.input_tokens, request.cached_tokens, request.output_tokens)
        receipt.cost = cost
        counts = Counts(
            1,
            request.input_tokens,
            request.cached_tokens,
            request.output_tokens,
            cost.prefill_milli_mu,
            cost.decode_milli_mu,
        )
        self.usage.settled(request.key, counts, now_ns)
        receipt.quota = self.holds.view(request.key, now_ns)
        receipt.end(Outcome.COMPLETED, "", self.clock(), None)

    def observe(self, request: Request) -> None:
        """Learns from the usage."""
        tenant_id, model_id = request.key
        self.pricing.observe(
            self.profile,
            tenant_id=tenant_id,
            model_id=model_id,
            prompt_bytes=request.prompt_bytes,
            messages=request.messages,
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            runs_to_max=False,
            bytes_per_token_start=_BYTES_PER_TOKEN,
        )

    def report(self) -> None:
        """What it says to the rate limiter each second."""
        self.demand.report(self.clock(), held=self.holds.held(), waiting={})


def round_of(router: Router) -> Times:
    """Decides every request once; CPU microseconds per request by part, and of one report with all tenants active."""
    parts = dict.fromkeys(PARTS, 0)

    def timed(part: str, begin_ns: int) -> int:
        end_ns = time.process_time_ns()
        parts[part] += end_ns - begin_ns
        return end_ns

    for at in range(0, REQUESTS, IN_FLIGHT):
        requests = router.requests[at : at + IN_FLIGHT]
        now_ns = time.process_time_ns()
        receipts = [router.remember(request) for request in requests]
        now_ns = timed("remember", now_ns)
        prices = [router.estimate(request) for request in requests]
        now_ns = timed("estimate", now_ns)
        holds = [router.hold(*each) for each in zip(requests, prices, receipts, strict=True)]
        now_ns = timed("hold", now_ns)
        for request, price, hold in zip(requests, prices, holds, strict=True):
            router.extend(request, price, hold)
        now_ns = timed("extend", now_ns)
        for request, hold, receipt in zip(requests, holds, receipts, strict=True):
            router.settle(request, hold, receipt)
        now_ns = timed("settle", now_ns)
        for request in requests:
            router.observe(request)
        timed("observe", now_ns)
    times = {part: spent_ns / REQUESTS / _NS_PER_US for part, spent_ns in parts.items()}
    times["without report"] = sum(times.values())
    for key in router.keys:
        router.demand.wanted(key, 1_000, router.clock())
    times["a report"] = cpu_us(router.report)
    times["report"] = times["a report"] / REQUESTS_PER_S
    times["whole"] = times["without report"] + times["report"]
    return times


async def tend(router: Router) -> None:
    """What the router does for its journal while no request waits."""
    journal = router.usage.journal
    assert journal is not None
    await journal.tend(router.usage.book)


def reference() -> None:
    """A fixed loop of plain Python: how fast this core is now."""
    value = 0
    for step in range(_REFERENCE_STEPS):
        value = (value * 31 + step) % 1_000_003


def cpu_us(work: Callable[[], None]) -> float:
    """CPU time of one call, microseconds."""
    begin_ns = time.process_time_ns()
    work()
    return (time.process_time_ns() - begin_ns) / _NS_PER_US


def measure(console: Console | None = None) -> Times:
    """Runs the rounds, prints them.

    Args:
        console: Where the table goes; standard output by default.

    Returns:
        Metrics by name: medians. `router_cpu_per_decision_us` is with MANY_TENANTS known, all of them active.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measure({tenants: Router(tenants, Path(folder)) for tenants in (FEW_TENANTS, MANY_TENANTS)}, console)


def _measure(routers: Mapping[int, Router], console: Console | None) -> Times:
    rounds: dict[str, list[Times]] = {"reference": [], **{str(tenants): [] for tenants in routers}}
    gc.collect()
    gc.freeze()
    try:
        for _ in range(ROUNDS):
            rounds["reference"].append({"step": cpu_us(reference) / _REFERENCE_STEPS})
            for tenants, router in routers.items():
                rounds[str(tenants)].append(round_of(router))
                # What a router does between requests: the journal's next file is ready before this one is full.
                asyncio.run(tend(router))
    finally:
        gc.unfreeze()
    table = Table(title="CPU of the router's quota decision, microseconds", title_justify="left")
    for column in ("tenants", "part", "median", "least", "greatest"):
        table.add_column(column, justify="left" if column in ("tenants", "part") else "right")
    medians: dict[tuple[str, str], float] = {}
    for tenants_, times in rounds.items():
        for part in times[0]:
            values = [each[part] for each in times]
            medians[tenants_, part] = statistics.median(values)
            table.add_row(
                tenants_, part, *(f"{value:.2f}" for value in (medians[tenants_, part], min(values), max(values)))
            )
    (console or Console()).print(table)
    many = str(MANY_TENANTS)
    return {
        "router_cpu_per_decision_us": medians[many, "whole"],
        "router_cpu_per_decision_few_tenants_us": medians[str(FEW_TENANTS), "whole"],
        "router_cpu_per_decision_without_report_us": medians[many, "without report"],
        **{f"router_cpu_{part}_us": medians[many, part] for part in (*PARTS, "report")},
        "router_cpu_demand_report_ms": medians[many, "a report"] / 1_000,
        "router_reference_step_us": medians["reference", "step"],
    }


if __name__ == "__main__":
    measure()
