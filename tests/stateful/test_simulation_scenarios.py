"""Small random scenarios: whatever comes together, the accounts add up."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation.fleet import Simulation
from simulation.scenario import POLICY_NAMES, FailureSpec, ModelSpec, Settings, TenantSpec, make_scenario

REPLICAS = 3

tenants = st.builds(
    TenantSpec,
    id=st.just(""),
    reservation_mu_per_minute=st.sampled_from([0.0, 20.0, 150.0]),
    burst_mu_per_minute=st.sampled_from([0.0, 300.0]),
    tier=st.integers(1, 9),
    priority=st.sampled_from(["interactive", "batch"]),
    workload=st.just("synthetic"),
    load=st.sampled_from([0.05, 0.4, 1.5]),
    input_tokens=st.sampled_from([10, 800, 9_000]),
    output_tokens=st.sampled_from([1, 120, 900]),
    input_sigma=st.sampled_from([0.0, 1.5]),
    bytes_per_token=st.sampled_from([2.5, 4.0]),
    max_tokens=st.sampled_from([16, 4_096]),
    session=st.sampled_from(["none", "client"]),
    retries_max=st.integers(0, 2),
    patience_s=st.sampled_from([0.0, 0.5]),
    deadline_s=st.sampled_from([1.0, 5.0, 600.0]),
    start_s=st.sampled_from([0.0, 2.0]),
)
failures = st.builds(
    FailureSpec,
    at_s=st.floats(0.0, 6.0),
    kind=st.sampled_from(["crash", "freeze", "slow", "drain"]),
    replica=st.integers(1, REPLICAS),
    heal_after_s=st.sampled_from([0.0, 0.5, 8.0]),
    slow_factor=st.sampled_from([0.5, 30.0]),
)
models = st.builds(
    ModelSpec,
    id=st.just("chat"),
    hardware=st.sampled_from(["h100", "a100"]),
    replicas=st.just(REPLICAS),
    cold_start_s=st.sampled_from([0.0, 3.0]),
    sequences_max=st.sampled_from([1, 4, 256]),
    queued_max=st.sampled_from([0, 2, 512]),
    replicas_max=st.just(5),
    replicas_min=st.just(1),
)
tops = st.builds(
    Settings,
    seed=st.integers(0, 5),
    duration_s=st.just(6.0),
    routers=st.integers(1, 3),
    report_delay_s=st.sampled_from([0.0, 0.005, 3.0]),
    control_delay_s=st.sampled_from([0.0, 0.05, 1.0]),
    policy=st.sampled_from(POLICY_NAMES),
    autoscaler=st.booleans(),
    scale_window_s=st.just(3.0),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(top=tops, model=models, crowd=st.lists(tenants, min_size=1, max_size=3), trouble=st.lists(failures, max_size=3))
def test_accounts_add_up_whatever_happens(
    top: Settings, model: ModelSpec, crowd: list[TenantSpec], trouble: list[FailureSpec]
) -> None:
    """Every request ends exactly once, charges equal settlements, nothing is held and nothing is left at a replica;
    what was completed had a first token, and who bought nothing gets nothing."""
    named = [_named(tenant, number) for number, tenant in enumerate(crowd)]
    simulation = Simulation(make_scenario(top, [model], named, trouble))
    result = simulation.run()  # it checks its own accounts
    for tenant in named:
        book = result.books[tenant.id]
        summary = next(each for each in result.summaries() if each.name == tenant.id)
        assert summary.completed <= len(book.ttft_s) <= summary.admitted
        assert summary.admitted <= book.received
        assert (book.settled_milli_mu > 0) or not summary.completed
        if not tenant.reservation_mu_per_minute and not tenant.burst_mu_per_minute:
            assert book.admitted == 0
    assert all(not router.open_requests for router in simulation.routers)
    for router in simulation.routers:
        assert not router.holds.held()


def _named(tenant: TenantSpec, number: int) -> TenantSpec:
    return replace(tenant, id=f"tenant-{number}")
