"""Recorded traces as loads for a fleet: which there are, how many replicas they need, and the mix of all.

"Load" is work over what a *saturated* fleet serves of the same traffic, measured by offering too much of it to two
replicas. A model unit is defined at the objective for the time per token, which a saturated replica misses, so a
fleet at 70 % of this load is at about 92 % of its capacity in model units.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Final

from rich.console import Console

from benchmarks.routing.runs import simulated, workloads
from benchmarks.simulation import metric_names, traces
from model_units.cost import cost
from model_units.profiles import built_in_profiles
from model_units.units import REPLICA_CAPACITY
from simulation.arrivals import traffic
from simulation.kernel import stream
from simulation.scenario import EXCERPT, SYNTHETIC, ModelSpec, Scenario, Settings, TenantSpec, make_scenario

HARDWARE: Final = "h100-tp4"
"""70B on four H100: where a long prompt takes seconds, routing matters most."""
MIX: Final = "mix"
LOAD: Final = 0.675
LOAD_RANGE: Final = (0.60, 0.75)
REPLICAS: Final = (5, 16)
"""Fewest at the recorded rate, and most."""
REPLICAS_SCALED: Final = 7
"""For what is too little for the fewest: recorded time runs faster until it fills these."""

_DRAWN_S: Final = 600.0
_SATURATED_S: Final = 90.0
_SATURATED_REPLICAS: Final = 2
# How many times what these replicas can do is offered; queues of this length never refuse it.
_SATURATED_FACTOR: Final = 3.0
_QUEUED_MAX: Final = 100_000
_CAPACITY_MU_PER_MINUTE: Final = 100.0
# What one saturated replica does, for the first guess of the rate that saturates.
_GUESS_MU_PER_MINUTE: Final = 130.0

# Without recorded prefixes and bursts, what a folder of traces has besides conversation: long prompts, and code.
_SYNTHETIC: Final = (
    TenantSpec(
        id="long",
        workload=SYNTHETIC,
        requests_per_s=3.0,
        input_tokens=7_000,
        input_sigma=1.1,
        output_tokens=300,
        output_sigma=0.6,
    ),
    TenantSpec(
        id="code",
        workload=SYNTHETIC,
        requests_per_s=3.0,
        input_tokens=1_500,
        input_sigma=0.9,
        output_tokens=13,
        output_sigma=1.2,
    ),
)


@dataclass(frozen=True, slots=True)
class Setup:
    """A fleet and its traffic.

    Attributes:
        name: As in metrics.
        tenants: One per trace, at the rate that is played.
        replicas: Of the fleet.
        requests_per_s: Of all traces.
        load: Expected share of what the fleet serves when saturated.
        conversation: Whether it is a conversation service by itself, without recorded prefixes.
    """

    name: str
    tenants: tuple[TenantSpec, ...]
    replicas: int
    requests_per_s: float
    load: float
    conversation: bool = False


def found(console: Console) -> dict[str, tuple[TenantSpec, ...]]:
    """Every trace of the folder TRACES by itself, and the mix of all; else what ships, and a mix with drawn traffic."""
    folder = os.environ.get("TRACES", "")
    if not folder:
        console.print("no TRACES: the excerpt that ships, mixed with drawn long prompts and code")
        alone = {EXCERPT: (TenantSpec(id=EXCERPT, workload=EXCERPT),)}
        return {MIX: (*alone[EXCERPT], *_SYNTHETIC), **alone}
    names = traces(Path(folder), workloads(), console)
    alone = {
        short: (TenantSpec(id=short, workload=name),) for name, short in zip(names, metric_names(names), strict=True)
    }
    every = tuple(tenant for tenants in alone.values() for tenant in tenants)
    return {MIX: every} | alone


def offered(tenants: Sequence[TenantSpec]) -> tuple[float, float]:
    """What comes at the recorded rates: MU per minute at the full price of every prompt, and requests per second."""
    profile = built_in_profiles().resolve("", HARDWARE)
    known = workloads()
    mu_per_minute = requests_per_s = 0.0
    for tenant in tenants:
        if tenant.workload == SYNTHETIC:
            drawn, duration_s = _drawn(tenant), _DRAWN_S
        else:
            workload = known.recorded(tenant.workload)
            drawn = [(each.input_tokens, each.output_tokens) for each in workload.requests]
            duration_s = workload.duration_s
        total = sum(cost(profile, input_tokens=read, output_tokens=made).total_milli_mu for read, made in drawn)
        mu_per_minute += total / 1_000.0 * 60.0 / duration_s
        requests_per_s += len(drawn) / duration_s
    return mu_per_minute, requests_per_s


def _drawn(tenant: TenantSpec) -> list[tuple[int, int]]:
    """Lengths of what a tenant with drawn traffic sends in _DRAWN_S."""
    profile = built_in_profiles().resolve("", HARDWARE)
    arrivals = traffic(tenant, workloads(), Random(1), profile, int(REPLICA_CAPACITY), _DRAWN_S, lambda _: None)
    return [(each.input_tokens, each.output_tokens) for each in takewhile(lambda each: each.at_s < _DRAWN_S, arrivals)]


def saturation(tenants: Sequence[TenantSpec]) -> float:
    """What one saturated replica serves of this traffic, MU per minute."""
    scale = _SATURATED_FACTOR * _SATURATED_REPLICAS * _GUESS_MU_PER_MINUTE / offered(tenants)[0]
    settings = Settings(duration_s=_SATURATED_S, quota=False, sharder="whole_fleet")
    scenario = _scenario(settings, _SATURATED_REPLICAS, scaled(tenants, scale))
    result = simulated(replace(scenario, models=(replace(scenario.models[0], queued_max=_QUEUED_MAX),)))
    share = [
        used
        for track in result.tracks
        for bucket, used in track.utilization
        if _SATURATED_S / 3 < bucket * result.bucket_s < _SATURATED_S
    ]
    return _CAPACITY_MU_PER_MINUTE * sum(share) / len(share)


def setup(name: str, tenants: Sequence[TenantSpec], saturated_mu_per_minute: float) -> Setup:
    """A fleet that these tenants fill to LOAD or nearly.

    Args:
        name: As in metrics.
        tenants: At the recorded rates.
        saturated_mu_per_minute: From `saturation`.
    """
    mu_per_minute, requests_per_s = offered(tenants)
    replicas, scale = sized(mu_per_minute / saturated_mu_per_minute)
    return Setup(
        name,
        scaled(tenants, scale),
        replicas,
        requests_per_s * scale,
        mu_per_minute * scale / saturated_mu_per_minute / replicas,
        conversation=name == EXCERPT or (name != MIX and "conv" in name and not _has_prefixes(tenants[0])),
    )


def sized(saturated_replicas: float) -> tuple[int, float]:
    """How many replicas, and at how many times the recorded rate.

    Args:
        saturated_replicas: Replicas that the recorded rate would saturate, above 0.
    """
    wanted = saturated_replicas / LOAD
    least, most = REPLICAS
    if wanted < least - 0.5:
        return REPLICAS_SCALED, REPLICAS_SCALED / wanted
    if wanted > most:
        return most, most / wanted
    return max(least, round(wanted)), 1.0


def scaled(tenants: Sequence[TenantSpec], scale: float) -> tuple[TenantSpec, ...]:
    """The same traffic at `scale` times its rate."""
    return tuple(
        replace(each, requests_per_s=each.requests_per_s * scale, rate_scale=each.rate_scale * scale)
        for each in tenants
    )


def played(fleet: Setup, settings: Settings) -> Scenario:
    """A run of a setup: with the seed 1 all traces begin at their beginning, with others anywhere."""
    tenants = fleet.tenants
    if settings.seed > 1:
        draws = [stream(settings.seed, "offset", tenant.id).uniform(0.0, 3_600.0) for tenant in tenants]
        tenants = tuple(replace(tenant, offset_s=draw) for tenant, draw in zip(tenants, draws, strict=True))
    return _scenario(settings, fleet.replicas, tenants)


def _scenario(settings: Settings, replicas: int, tenants: Sequence[TenantSpec]) -> Scenario:
    return make_scenario(settings, [ModelSpec(id="chat", hardware=HARDWARE, replicas=replicas)], list(tenants))


def _has_prefixes(tenant: TenantSpec) -> bool:
    return any(request.prefix for request in workloads().recorded(tenant.workload).requests[:100])
