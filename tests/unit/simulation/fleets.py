"""Small scenarios for the tests of the simulator."""

from __future__ import annotations

from simulation.arrivals import Workloads
from simulation.fleet import Simulation
from simulation.result import Result, Summary
from simulation.scenario import FailureSpec, GroupSpec, ModelSpec, Settings, TenantSpec, make_scenario


def simulation(
    *,
    tenants: list[TenantSpec] | None = None,
    model: ModelSpec | None = None,
    failures: list[FailureSpec] | None = None,
    settings: Settings | None = None,
    workloads: Workloads | None = None,
    groups: list[GroupSpec] | None = None,
) -> Simulation:
    """Two replicas and one tenant at half load for 20 s, unless said otherwise."""
    return Simulation(
        make_scenario(
            settings or Settings(duration_s=20.0, routers=2),
            [model or ModelSpec(id="chat", replicas=2)],
            tenants or [chatter()],
            failures,
            groups,
        ),
        workloads,
    )


def chatter(name: str = "acme", **changes: object) -> TenantSpec:
    """A tenant with synthetic traffic and room to spare."""
    values: dict[str, object] = {
        "reservation_mu_per_minute": 120.0,
        "burst_mu_per_minute": 400.0,
        "workload": "synthetic",
        "load": 0.5,
        **changes,
    }
    return TenantSpec(id=name, **values)  # type: ignore[arg-type]


def by_name(result: Result) -> dict[str, Summary]:
    """Summaries by tenant."""
    return {summary.name: summary for summary in result.summaries()}
