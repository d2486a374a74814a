"""Routing and sharding in virtual time: the product's policies and its sharder, and what results say of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from common.shard_map import tenant_keys
from control_plane.core.sharding.values import Cause, Move
from simulation.books import Rearrangement
from simulation.report import render
from simulation.report_sharding import marks
from simulation.result import Result
from simulation.scenario import FailureSpec, ModelSpec, Settings, TenantSpec
from simulation.sharding_view import Evenness, ShardingView
from tests.unit.simulation.fleets import by_name, chatter, simulation

_CHAT = TenantSpec(
    id="talk",
    count=4,
    workload="chat",
    load=0.6,
    session="client",
    input_tokens=300,
    turns=8.0,
    think_s=5.0,
    reservation_mu_per_minute=100.0,
)


def _talk(**settings: object) -> Result:
    values = Settings(duration_s=40.0, quota=False, **settings)  # type: ignore[arg-type]
    return simulation(tenants=[_CHAT], model=ModelSpec(id="chat", replicas=6), settings=values).run()


def test_sessions_find_their_prefixes_again() -> None:
    """The platform's rule finds far more of what sessions said before than random pairs do, and answers sooner."""
    ours, pairs = (by_name(_talk(policy=policy))["total"] for policy in ("product", "two_choices"))
    assert ours.cached_share > 1.3 * pairs.cached_share > 0.0
    assert ours.ttft.p95_s < pairs.ttft.p95_s


def test_subsets_keep_tenants_apart() -> None:
    """With slices a tenant meets a part of the fleet; without the sharder it meets all of it."""
    tenants = [chatter(f"t{number}", load=0.04, reservation_mu_per_minute=20.0) for number in range(8)]
    shares = {}
    for sharder in ("on", "whole_fleet"):
        settings = Settings(duration_s=30.0, quota=False, sharder=sharder)
        result = simulation(tenants=tenants, model=ModelSpec(id="chat", replicas=10), settings=settings).run()
        shares[sharder] = result.sharding().footprints
    assert max(shares["on"].values()) <= 0.5
    assert min(shares["whole_fleet"].values()) >= 0.7


def test_a_fixed_assignment_moves_for_failures_only() -> None:
    """Where the sharder is fixed, a tenant that grows moves nothing, and a crash moves what was there."""
    tenants = [chatter("grows", load=0.1, surge_at_s=10.0, surge_factor=5.0), chatter("stays", load=0.1)]
    model = ModelSpec(id="chat", replicas=8)
    crash = [FailureSpec(kind="crash", at_s=20.0, replica=number) for number in (1, 2)]
    settings = Settings(duration_s=30.0, quota=False, sharder="fixed")
    quiet = simulation(tenants=tenants, model=model, settings=settings).run()
    assert quiet.rearrangements == ()
    broken = simulation(tenants=tenants, model=model, settings=settings, failures=crash).run()
    assert broken.rearrangements
    assert {move.cause for each in broken.rearrangements for move in each.moves} <= {Cause.REMOVAL, Cause.ADDITION}


def test_a_crash_is_in_the_assignment_before_the_lease_ends() -> None:
    """The sharder hears that a replica is gone, and names it no more within four seconds."""
    sim = simulation(
        model=ModelSpec(id="chat", replicas=4),
        settings=Settings(duration_s=30.0, quota=False),
        failures=[FailureSpec(kind="crash", at_s=10.0, replica=number) for number in (2,)],
        tenants=[chatter("a", load=0.2), chatter("b", load=0.2)],
    )
    sim.run_to(14.0)
    assignment = sim.routers[0]._routing._assignments["chat"]
    assert "chat-replica-2-1" not in assignment.replica_ids
    sim.run()


def test_a_growing_tenant_gets_replicas() -> None:
    """A tenant whose load grows far beyond its replicas has more of them after a few rounds, and the busiest replica is
    near the mean again."""
    tenants = [chatter(f"t{number}", load=0.04) for number in range(6)]
    tenants.append(chatter("grows", load=0.05, surge_at_s=20.0, surge_factor=8.0))
    settings = Settings(duration_s=110.0, quota=False)
    sim = simulation(tenants=tenants, model=ModelSpec(id="chat", replicas=8), settings=settings)
    sim.run_to(100.0)
    assignment = sim.routers[0]._routing._assignments["chat"]
    replicas = {each.id: len(set().union(*assignment.subsets(*tenant_keys(each.id)))) for each in tenants}
    assert replicas["grows"] > min(replicas.values()) == 3
    assert sim.run().sharding().even_again_s(25.0, 1.4) < 60.0


def test_requests_that_cannot_make_their_deadline_are_refused_at_once() -> None:
    """Under overload with a short deadline requests are refused before they are sent, and hardly any misses it."""
    overload = chatter(load=6.0, deadline_s=1.0, input_tokens=4_000)
    settings = Settings(duration_s=15.0, quota=False)
    result = simulation(tenants=[overload], model=ModelSpec(id="chat", replicas=1), settings=settings).run()
    total = by_name(result)["total"]
    assert result.too_late == total.refused["DEADLINE_TOO_SHORT"] > 5
    assert result.open_holds == 0


def test_late_binding_loses_nobody() -> None:
    """Requests that wait in the router for room all end, under overload and with a crash, and nothing is left."""
    tenants = [chatter("a", load=0.9), chatter("b", load=0.6, patience_s=3.0)]
    result = simulation(
        tenants=tenants,
        model=ModelSpec(id="chat", replicas=3),
        settings=Settings(duration_s=20.0, quota=False, policy="late_binding"),
        failures=[FailureSpec(kind="crash", at_s=10.0, replica=1)],
    ).run()
    total = by_name(result)["total"]
    assert total.received == total.completed + total.cancelled + sum(total.refused.values()) + sum(
        total.failed.values()
    )
    assert total.completed > 100


def test_news_that_are_late_misroute_requests() -> None:
    """When the store is slow, requests go to replicas that the newest assignment took away, and they are counted."""
    drains = [FailureSpec(kind="drain", at_s=5.0, replica=1), FailureSpec(kind="drain", at_s=12.0, replica=2)]
    counts = []
    for delay_s in (0.01, 5.0):
        settings = Settings(duration_s=30.0, quota=False, control_delay_s=delay_s)
        tenants = [chatter("a", load=0.3), chatter("b", load=0.3)]
        result = simulation(
            tenants=tenants, model=ModelSpec(id="chat", replicas=8), settings=settings, failures=drains
        ).run()
        counts.append(result.sharding().misrouted)
    assert counts[0] < counts[1]


def test_results_tell_what_moved() -> None:
    """Moves, their causes and their share of the load are in JSON, in the report's table and in its heat map."""
    tenants = [chatter("a", load=0.3), chatter("b", load=0.3)]
    result = simulation(
        tenants=tenants,
        model=ModelSpec(id="chat", replicas=6),
        settings=Settings(duration_s=16.0, quota=False),
        failures=[FailureSpec(kind="crash", at_s=8.0, replica=number) for number in (1, 2, 3)],
    ).run()
    told = json.loads(json.dumps(result.as_json()))["sharding"]
    removals = [each for each in told["rearrangements"] if "removal" in each["churn_by_cause"]]
    assert removals
    assert removals[0]["at_s"] > 8.0
    assert 0.0 < removals[0]["churn"] <= 1.0
    rows = {track.replica_id: row for row, track in enumerate(result.tracks)}
    assert marks(result, Cause.REMOVAL, came=False, rows=rows)
    page = render(result, 1.0)
    assert "removal %" in page
    assert "max/mean utilisation" in page


def _view(worst: list[float], rearrangements: tuple[Rearrangement, ...] = ()) -> ShardingView:
    evenness = tuple(Evenness(float(at), 0.5, value) for at, value in enumerate(worst))
    return ShardingView(evenness, {}, 1_000, 3, rearrangements, 5.0)


def test_even_again_means_that_it_stays_so() -> None:
    """A dip below the limit that does not last is no recovery; one that lasts counts from its beginning."""
    view = _view([1.1, 2.0, 1.1, 1.1, 2.0, *[1.15] * 10])
    assert view.even_again_s(1.0, 1.2, lasting_s=5.0) == pytest.approx(4.0)
    assert view.even_again_s(1.0, 1.2, lasting_s=50.0) == float("inf")
    assert view.worst(1.0) == pytest.approx(2.0)
    assert view.worst(1.0, from_s=6.0) == pytest.approx(1.15)
    assert view.misrouted_share == pytest.approx(0.003)


def test_churn_is_a_share_of_all_load() -> None:
    """What moved is counted over all load, by cause where one is asked for, and only from a moment on."""
    moves = (Move(0, "a", "r1", "r2", Cause.BALANCE, 30, 0), Move(0, "b", "r1", "", Cause.SHRINK, 20, 0))
    early = Rearrangement(6.0, "m", "why", 1_000, moves)
    view = _view([], (early, replace(early, at_s=50.0, load=0)))
    assert view.churn() == [pytest.approx(0.05), 0.0]
    assert view.churn(Cause.BALANCE) == [pytest.approx(0.03), 0.0]
    assert view.churn(from_s=10.0) == [0.0]
