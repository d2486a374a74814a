"""Isolation in virtual time: what an aggressor does to the others' time to first token.

Eight tenants share eight replicas whose whole promised capacity is sold to them in equal parts; each may be lent up to
twice that. Seven use 60 to 80 % of what they bought; three of them play recorded conversations, the others synthetic
traffic with lognormal lengths. The eighth once sends what it bought and once ten times that: either all the time, or in
pulses of 4 s every 40 s, so that each meets buckets that have filled up. All runs of a seed have the same seven, who
send the same requests at the same times; compared is the 95th percentile of their time to first token.

The same is measured without the guards, so that one sees what they do and that the measurement can fail:

- *first come first served*: the agent's queue knows no tenants and lets everything into the engine;
- *no quota*: routers admit everything;
- *neither*.

`python -m benchmarks.quota.isolation`
"""

from __future__ import annotations

import contextlib
import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

import simulation.replica
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.holds import BucketKey, Holds, LeaseTerms
from engines.agent.core.queue import AdmissionQueue, Offer, QueueLimits, Ticket
from model_units.cost import cost
from model_units.profiles import built_in_profiles
from simulation.arrivals import Workloads
from simulation.fleet import Simulation
from simulation.kernel import stream
from simulation.result import Result
from simulation.scenario import EXCERPT, SYNTHETIC, ModelSpec, Scenario, Settings, TenantSpec, make_scenario
from simulation.traces.workload import SimRequest, Workload

REPLICAS: Final = 8
TARGET_UTILIZATION: Final = 0.8
DURATION_S: Final = 180.0
UNGUARDED_S: Final = 90.0
"""At most so long without the guards: two pulses are enough to see that the measurement can fail."""
SETTLE_S: Final = 30.0
"""Requests that come earlier are not compared: lengths and demand are still being learned."""
SEEDS: Final = (1, 2, 3)
FACTOR: Final = 10.0
"""How many times its quota the aggressor sends."""
AGGRESSOR: Final = "aggressor"
PERIOD_S: Final = 40.0
"""Pauses of more than the thirty seconds in which a bucket fills."""
PULSE_S: Final = 4.0

_QUOTA_MU: Final = REPLICAS * 100 * TARGET_UTILIZATION / 8
# Of the quota, and what they send: workload, median prompt, median output.
_OTHERS: Final = (
    (0.60, EXCERPT, 0, 0),
    (0.70, EXCERPT, 0, 0),
    (0.80, EXCERPT, 0, 0),
    (0.65, SYNTHETIC, 800, 150),
    (0.70, SYNTHETIC, 1_500, 250),
    (0.75, SYNTHETIC, 2_500, 60),
    (0.70, SYNTHETIC, 400, 400),
)
# Medians of the aggressor's prompts and outputs, and the sigma of their logarithms.
_AGGRESSOR_TOKENS: Final = (3_000, 100)
_SIGMA: Final = 0.8
_PRICED: Final = 2_000
# More than anybody sends.
_UNLIMITED_MILLI_MU: Final = 10**12


@dataclass(frozen=True, slots=True)
class Guards:
    """What stands between the tenants.

    Attributes:
        name: In results.
        fair: Fair queueing at the agents.
        quota: Holds at the routers.
        seeds: Of the runs.
    """

    name: str
    fair: bool = True
    quota: bool = True
    seeds: tuple[int, ...] = SEEDS


PRODUCT: Final = Guards("product")
WITHOUT: Final = (
    Guards("first_come", fair=False, seeds=SEEDS[:1]),
    Guards("no_quota", quota=False, seeds=SEEDS[:1]),
    Guards("neither", fair=False, quota=False, seeds=SEEDS[:1]),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A run with the aggressor at its quota, and the same one with it far above.

    Attributes:
        calm_p95_s: The others' 95th percentile of the time to first token in the first.
        ratio: The same in the second, over it.
        worst_ratio: The largest such ratio of a single tenant.
        refused_more: The others' refused requests in the second, beyond those in the first, over all they sent.
        refused: Their refused requests in the second.
        aggressor_share: What the aggressor was charged in the second over its reservation.
    """

    calm_p95_s: float
    ratio: float
    worst_ratio: float
    refused_more: float
    refused: int
    aggressor_share: float


class Attack(enum.Enum):
    """How the aggressor sends ten times its quota; the value is the name in results."""

    STEADY = "steady"
    PULSES = "pulses"


class _FirstCome(AdmissionQueue):
    """The agent's queue without tenants and without a limit on prefill inside."""

    def __init__(self, limits: QueueLimits) -> None:
        super().__init__(replace(limits, prefill_milli_mu=0))

    def offer(self, ticket: Ticket) -> Offer:
        """See AdmissionQueue."""
        return super().offer(replace(ticket, tenant_id="", weight=1))


class _Unlimited(Holds):
    """Buckets that are never empty."""

    def apply(self, leases: Mapping[BucketKey, LeaseTerms], **terms: Any) -> None:
        """See Holds."""
        unlimited = {
            key: replace(lease, rate_milli_mu_per_minute=_UNLIMITED_MILLI_MU, burst_milli_mu=_UNLIMITED_MILLI_MU)
            for key, lease in leases.items()
        }
        super().apply(unlimited, **terms)


def scenario(seed: int, duration_s: float = DURATION_S) -> Scenario:
    """The eight tenants.

    Args:
        seed: Of the run.
        duration_s: How long traffic comes.
    """
    part = _QUOTA_MU / (REPLICAS * 100)
    tenants = [
        _tenant(f"tenant-{number}", share * part, workload, tokens_in, tokens_out, offset_s=17.0 * number)
        for number, (share, workload, tokens_in, tokens_out) in enumerate(_OTHERS, 1)
    ]
    tenants.append(_tenant(AGGRESSOR, 0.0, AGGRESSOR, 0, 0))
    model = ModelSpec(id="chat", replicas=REPLICAS, target_utilization=TARGET_UTILIZATION)
    return make_scenario(Settings(seed=seed, sharder="whole_fleet", duration_s=duration_s, routers=3), [model], tenants)


def attack(seed: int, factor: float, kind: Attack, duration_s: float) -> Workload:
    """What the aggressor sends.

    Args:
        seed: Of its lengths and times.
        factor: Its work over its quota, on average.
        kind: Whether it pauses between.
        duration_s: How long.
    """
    random = stream(seed, AGGRESSOR)
    profile = built_in_profiles().default_for("h100")

    def lengths() -> tuple[int, int]:
        tokens = (median * math.exp(random.gauss(0.0, _SIGMA)) for median in _AGGRESSOR_TOKENS)
        return tuple(max(1, round(each)) for each in tokens)  # type: ignore[return-value]

    sample = [lengths() for _ in range(_PRICED)]
    mean = sum(cost(profile, input_tokens=read, output_tokens=made).total_milli_mu for read, made in sample) / _PRICED
    rate = factor * _QUOTA_MU * 1_000 / 60 / mean
    requests, at_s = [], random.expovariate(rate)
    while at_s < duration_s:
        time_s = at_s
        if kind is Attack.PULSES:
            time_s = at_s // PERIOD_S * PERIOD_S + at_s % PERIOD_S * PULSE_S / PERIOD_S
        requests.append(SimRequest(time_s, "", *lengths()))
        at_s += random.expovariate(rate)
    return Workload(AGGRESSOR, tuple(requests), (), ("",), duration_s)


def compare(seed: int, guards: Guards = PRODUCT, duration_s: float = DURATION_S) -> dict[Attack, Pair]:
    """A run with the aggressor at its quota, and one for each attack.

    Args:
        seed: Of all.
        guards: What stands between the tenants.
        duration_s: How long traffic comes.
    """
    calm = _run(seed, 1.0, Attack.STEADY, guards, duration_s)
    return {kind: _pair(calm, _run(seed, FACTOR, kind, guards, duration_s), duration_s) for kind in Attack}


def _pair(calm: Result, wild: Result, duration_s: float) -> Pair:
    others = [name for name in calm.books if name != AGGRESSOR]
    sent = sum(wild.books[name].count(outcome) for name in others for outcome in Outcome)
    return Pair(
        calm_p95_s=_p95_s(calm, others),
        ratio=_p95_s(wild, others) / _p95_s(calm, others),
        worst_ratio=max(_p95_s(wild, [name]) / _p95_s(calm, [name]) for name in others),
        refused_more=sum(_refused(wild, name) - _refused(calm, name) for name in others) / max(1, sent),
        refused=sum(_refused(wild, name) for name in others),
        aggressor_share=wild.books[AGGRESSOR].settled_milli_mu / 1_000 / (_QUOTA_MU * duration_s / 60),
    )


def measure(duration_s: float = DURATION_S) -> dict[str, float]:
    """All guards, attacks and seeds.

    Returns:
        Metrics by name; of each combination of guards and attack the mean over the seeds, and the spread.
    """
    metrics = {}
    for guards in (PRODUCT, *WITHOUT):
        length_s = duration_s if guards is PRODUCT else min(duration_s, UNGUARDED_S)
        compared = [compare(seed, guards, length_s) for seed in guards.seeds]
        for kind in Attack:
            pairs = [each[kind] for each in compared]
            name = f"isolation_{guards.name}_{kind.value}"
            ratios = [each.ratio for each in pairs]
            metrics[f"{name}_ttft_p95_ratio"] = float(np.mean(ratios))
            metrics[f"{name}_ttft_p95_ratio_spread"] = max(ratios) - min(ratios)
            metrics[f"{name}_ttft_p95_ratio_worst_tenant"] = max(each.worst_ratio for each in pairs)
            metrics[f"{name}_others_refused_more_percent"] = 100 * float(np.mean([p.refused_more for p in pairs]))
            metrics[f"{name}_others_refused"] = float(sum(each.refused for each in pairs))
            metrics[f"{name}_aggressor_of_its_quota"] = float(np.mean([each.aggressor_share for each in pairs]))
        metrics[f"isolation_{guards.name}_calm_ttft_p95_s"] = float(
            np.mean([c[Attack.STEADY].calm_p95_s for c in compared])
        )
    return metrics


def _tenant(
    name: str, load: float, workload: str, tokens_in: int, tokens_out: int, *, offset_s: float = 0.0
) -> TenantSpec:
    spec = TenantSpec(
        id=name,
        reservation_mu_per_minute=_QUOTA_MU,
        burst_mu_per_minute=2 * _QUOTA_MU,
        workload=workload,
        load=load,
        offset_s=offset_s,
    )
    return replace(spec, input_tokens=tokens_in, output_tokens=tokens_out) if workload == SYNTHETIC else spec


def _run(seed: int, factor: float, kind: Attack, guards: Guards, duration_s: float) -> Result:
    workloads = Workloads(None)
    workloads.put(AGGRESSOR, attack(seed, factor, kind, duration_s))
    with contextlib.nullcontext() if guards.fair else _first_come():
        run = Simulation(scenario(seed, duration_s), workloads)
        if not guards.quota:
            for router in run.routers:
                _lift_quota(router)
        return run.run()


def _lift_quota(router: object) -> None:
    """Gives a router that has not begun buckets that are never empty."""
    holds = router.holds  # type: ignore[attr-defined]
    holds.__class__ = _Unlimited


@contextlib.contextmanager
def _first_come() -> Iterator[None]:
    """Replicas that are made meanwhile queue without regard to tenants."""
    vars(simulation.replica)["AdmissionQueue"] = _FirstCome
    try:
        yield
    finally:
        vars(simulation.replica)["AdmissionQueue"] = AdmissionQueue


def _p95_s(result: Result, names: list[str]) -> float:
    ttft = np.concatenate([np.array(result.books[name].ttft_s) for name in names])
    arrived = np.concatenate([np.array(result.books[name].ttft_at_s) for name in names]) - result.start_s
    chosen = ttft[arrived >= SETTLE_S]
    return float(np.percentile(chosen, 95)) if len(chosen) else math.nan


def _refused(result: Result, name: str) -> int:
    return result.books[name].count(Outcome.REFUSED)


def main() -> None:
    """Measures and prints."""
    table = Table(title="isolation: others' p95 TTFT, aggressor at ten times its quota over the aggressor at its quota")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in measure().items():
        table.add_row(name, f"{value:,.4g}")
    Console().print(table)


if __name__ == "__main__":
    main()
