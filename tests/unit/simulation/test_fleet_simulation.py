"""The fleet in virtual time: accounts, failures, quotas and the edges of a scenario."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.errors import Reason
from simulation.arrivals import Workloads
from simulation.fleet import Simulation
from simulation.report import render
from simulation.scenario import (
    POLICY_NAMES,
    FailureSpec,
    GroupSpec,
    ModelSpec,
    Settings,
    TenantSpec,
    parse_scenario,
    read_scenario,
)
from simulation.traces import SimRequest, Workload
from tests.unit.simulation.fleets import by_name, chatter, simulation

ROOT = Path(__file__).resolve().parents[3]
SCENARIOS = ROOT / "simulation" / "scenarios"


def test_every_request_ends_once_and_is_charged_what_it_cost() -> None:
    """Received equals the ends, the tenants' charges equal the buckets' settlements, and nothing is held at the end."""
    result = simulation(tenants=[chatter("a", load=0.3), chatter("b", load=0.3, priority="batch")]).run()
    total = by_name(result)["total"]
    assert total.received > 200
    assert total.received == total.completed + total.cancelled + sum(total.refused.values()) + sum(
        total.failed.values()
    )
    assert sum(book.settled_milli_mu for book in result.books.values()) == result.settled_by_holds_milli_mu
    assert result.open_holds == 0
    assert result.left_in_flight == 0


def test_accounts_that_do_not_add_up_are_a_defect() -> None:
    """A lost request, a lost charge and a forgotten hold are each found by the check at the end."""
    for damage in ("received", "settled_milli_mu"):
        result = simulation(settings=Settings(duration_s=3.0)).run()
        book = result.books["acme"]
        setattr(book, damage, getattr(book, damage) + 1)
        with pytest.raises(RuntimeError, match=r"received|charged"):
            result.check()
    sim = simulation(settings=Settings(duration_s=3.0))
    sim.run()
    router = sim.routers[0]
    now_ns = sim.loop.now_ns
    assert router.holds.hold(("acme", "chat"), 1, now_ns)
    with pytest.raises(RuntimeError, match="holds"):
        sim.run()


def test_the_fleet_serves_what_the_profile_says_it_can() -> None:
    """At half load by the cost profile replicas measure themselves as half used, and first tokens come at once."""
    result = simulation(settings=Settings(duration_s=60.0)).run()
    total = by_name(result)["total"]
    used = sum(track.served_milli_mu for track in result.tracks) / (2 * 100_000)
    assert 0.4 < used < 0.6
    assert total.settled_mu == pytest.approx(sum(track.served_milli_mu for track in result.tracks) / 1_000, rel=0.25)
    assert total.ttft.p50_s < 0.2
    assert 0.005 < total.tpot.p50_s < 0.05


PROBE = """
import hashlib, json
from pathlib import Path
from fairlead.errors import Reason
from simulation.arrivals import Workloads
from simulation.fleet import Simulation
from simulation.scenario import read_scenario
import dataclasses
scenario = read_scenario(Path("simulation/scenarios/replica_failure.toml"))
failures = tuple(dataclasses.replace(each, at_s=8.0) for each in scenario.failures[:1])
for seed in SEEDS:
    settings = dataclasses.replace(scenario.settings, duration_s=12.0, seed=seed)
    result = Simulation(dataclasses.replace(scenario, settings=settings, failures=failures)).run()
    print(hashlib.sha256(json.dumps(result.as_json(), sort_keys=True).encode()).hexdigest())
"""


def _fingerprints(seeds: tuple[int, ...], hash_seed: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("SEEDS", str(seeds))],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_seed_is_a_run() -> None:
    """The same seed gives the same results in processes that hash differently; another seed gives others."""
    first, other = _fingerprints((3, 4), "1")
    assert [first] == _fingerprints((3,), "2")
    assert first != other


def test_a_crash_is_hidden_before_the_first_token_and_told_after_it() -> None:
    """Of requests at a replica that dies, those without a token move, and only those with some fail, and are charged
    for them."""
    sim = simulation(
        tenants=[chatter(load=0.9, input_tokens=6_000, input_sigma=0.1)],
        failures=[FailureSpec(kind="crash", at_s=10.0, replica=1)],
        model=ModelSpec(id="chat", replicas=4),
        settings=Settings(duration_s=20.0, routers=2, sharder="whole_fleet"),
    )
    result = sim.run()
    total = by_name(result)["total"]
    assert set(total.failed) == {"STREAM_BROKEN"}
    assert total.moved > 0
    assert total.completed > 5 * sum(total.failed.values())


def test_a_crash_of_the_only_replica_fails_what_is_there_until_it_is_back() -> None:
    """With one replica and a crash nothing is served until its cold start is over; then everything is."""
    result = simulation(
        model=ModelSpec(id="chat", replicas=1, cold_start_s=10.0),
        settings=Settings(duration_s=60.0),
        failures=[FailureSpec(kind="crash", at_s=20.0, heal_after_s=2.0)],
    ).run()
    ready = [incident.at_s - result.start_s for incident in result.incidents if incident.kind == "ready"]
    assert ready == [pytest.approx(32.0)]
    served = [at - result.start_s for at in result.books["acme"].ttft_at_s]
    assert not [at for at in served if 20.5 < at < 31.5]
    assert [at for at in served if at > 36.0]
    assert set(by_name(result)["total"].failed) <= {"STREAM_BROKEN", "REPLICA_LOST", "NO_REPLICA"}


def test_a_frozen_machine_is_avoided_and_goes_on_where_it_stood() -> None:
    """Routers leave a silent replica within seconds, and what was in it comes out after it thaws."""
    result = simulation(
        model=ModelSpec(id="chat", replicas=3),
        settings=Settings(duration_s=60.0),
        failures=[FailureSpec(kind="freeze", at_s=20.0, replica=1, heal_after_s=20.0)],
        tenants=[chatter(load=0.4)],
    ).run()
    total = by_name(result)["total"]
    assert total.completed == total.admitted
    book = result.books["acme"]
    late = [at - result.start_s for at, ttft in zip(book.ttft_at_s, book.ttft_s, strict=True) if ttft > 5.0]
    assert late
    assert min(late) > 19.0
    assert max(late) < 30.0  # 5 s of silence and a second of grace, not the twenty that it lasted


def test_a_drained_replica_finishes_what_it_has() -> None:
    """Taking a replica out on purpose fails nobody."""
    result = simulation(
        model=ModelSpec(id="chat", replicas=3),
        failures=[FailureSpec(kind="drain", at_s=8.0, replica=2)],
        tenants=[chatter(load=0.4)],
    ).run()
    total = by_name(result)["total"]
    assert total.completed == total.received
    assert not result.tracks[1].utilization or result.tracks[1].lived_s < 30.0


def test_a_slow_replica_gets_less_work() -> None:
    """Routers send less to a replica whose engine is many times slower than the others."""
    result = simulation(
        model=ModelSpec(id="chat", replicas=3),
        settings=Settings(duration_s=40.0),
        failures=[FailureSpec(kind="slow", at_s=0.0, replica=1, slow_factor=20.0)],
        tenants=[chatter(load=0.4)],
    ).run()
    slow, *others = [track.requests for track in result.tracks]
    assert slow < 0.6 * min(others)


def test_no_replica_at_all() -> None:
    """A model without replicas has no capacity to promise: everything is refused, nothing hangs."""
    result = simulation(model=ModelSpec(id="chat", replicas=0), settings=Settings(duration_s=5.0)).run()
    total = by_name(result)["total"]
    assert total.received > 0
    assert sum(total.refused.values()) == total.received
    assert total.settled_mu == 0


def test_one_replica_and_one_router() -> None:
    """The smallest fleet works."""
    result = simulation(model=ModelSpec(id="chat", replicas=1), settings=Settings(duration_s=10.0, routers=1)).run()
    total = by_name(result)["total"]
    assert total.completed == total.received > 20


def test_who_sends_ten_times_his_quota_gets_his_quota_and_the_others_theirs() -> None:
    """The aggressor is charged about what it bought over the run, its burst on top; the others are refused nothing and
    their first tokens come as fast as without it."""
    steady = [
        chatter(f"steady-{number}", load=0.15, reservation_mu_per_minute=90.0, burst_mu_per_minute=0.0)
        for number in (1, 2, 3)
    ]
    aggressor = chatter("aggressor", load=2.0, reservation_mu_per_minute=80.0, burst_mu_per_minute=0.0, retries_max=2)
    model = ModelSpec(id="chat", replicas=4, target_utilization=0.9)
    settings = Settings(duration_s=60.0, routers=3)
    alone = by_name(simulation(tenants=steady, model=model, settings=settings).run())
    together = by_name(simulation(tenants=[*steady, aggressor], model=model, settings=settings).run())
    # Its burst is 30 s worth of its quota, and what estimates were short of is paid later.
    assert 0.85 <= together["aggressor"].quota_used <= 1.0 + 40.0 / 60.0
    assert sum(together["aggressor"].refused.values()) > 5 * together["aggressor"].admitted
    for tenant in steady:
        with_it, without = together[tenant.id], alone[tenant.id]
        assert sum(with_it.refused.values()) <= 0.01 * with_it.received
        assert with_it.ttft.p99_s < 2.0 * without.ttft.p99_s + 0.1
    assert together["aggressor"].repeated > 0


def test_stale_reports_cost_little() -> None:
    """Reports two seconds old do not double the time to first token, because routers count their own dispatches."""
    tenants = [chatter(load=0.65, reservation_mu_per_minute=400.0)]
    model = ModelSpec(id="chat", replicas=4, target_utilization=1.0)
    fresh = simulation(tenants=tenants, model=model, settings=Settings(duration_s=30.0)).run()
    stale = simulation(tenants=tenants, model=model, settings=Settings(duration_s=30.0, report_delay_s=2.0)).run()
    assert by_name(stale)["total"].ttft.p95_s < 2.0 * by_name(fresh)["total"].ttft.p95_s


def test_answers_carry_reports_unless_told_otherwise() -> None:
    """Without reports on answers, and with slow ones, routers know less, and first tokens come later."""
    tenants = [chatter(load=0.8, reservation_mu_per_minute=400.0)]
    model = ModelSpec(id="chat", replicas=6, target_utilization=1.0)
    told = simulation(tenants=tenants, model=model, settings=Settings(duration_s=30.0, routers=4)).run()
    blind = Settings(duration_s=30.0, routers=4, answers_report=False, report_interval_s=5.0, report_delay_s=5.0)
    untold = simulation(tenants=tenants, model=model, settings=blind).run()
    assert by_name(untold)["total"].ttft.p95_s > by_name(told)["total"].ttft.p95_s


def test_without_quota_everything_is_admitted() -> None:
    """Who bought nothing and asks for twice what there is, is refused nothing where quota is off, and all of it where
    it is on."""
    for quota in (True, False):
        tenant = chatter(load=2.0, reservation_mu_per_minute=0.0, burst_mu_per_minute=0.0, deadline_s=60.0)
        settings = Settings(duration_s=10.0, quota=quota)
        total = by_name(simulation(tenants=[tenant], settings=settings).run())["total"]
        assert total.admitted == (0 if quota else total.received)


def test_faster_replicas_do_more() -> None:
    """Replicas of a group twice as fast register twice the capacity, and serve at least about twice as much: the same
    utilisation and more, because first tokens come sooner there."""
    groups = [GroupSpec(replicas=2, speed=2.0)]
    settings = Settings(duration_s=40.0, quota=False, sharder="whole_fleet")
    result = simulation(tenants=[chatter(load=0.6)], settings=settings, groups=groups).run()
    served = [track.served_milli_mu for track in result.tracks]
    assert [track.capacity for track in result.tracks] == [100_000, 100_000, 200_000, 200_000]
    assert sum(served[2:]) > 1.7 * sum(served[:2])
    assert max(result.utilization(track) for track in result.tracks) < 0.95


def test_the_autoscaler_follows_demand() -> None:
    """Demand beyond two replicas starts more, which take requests after their cold start; later they go again."""
    result = simulation(
        model=ModelSpec(id="chat", replicas=2, replicas_min=1, replicas_max=6, cold_start_s=15.0),
        tenants=[
            chatter("base", load=0.3, reservation_mu_per_minute=80.0),
            chatter("rush", load=1.2, reservation_mu_per_minute=20.0, start_s=10.0, end_s=100.0),
        ],
        settings=Settings(duration_s=260.0, autoscaler=True, scale_window_s=30.0),
    ).run()
    assert len(result.tracks) > 2
    assert any(track.requests for track in result.tracks[2:])
    first_ready = min(i.at_s for i in result.incidents if i.kind == "ready") - result.start_s
    assert first_ready > 25.0
    lived = [track.lived_s for track in result.tracks]
    assert min(lived) < 230.0


def test_patience_and_deadlines_end_requests() -> None:
    """A client that waits too long for a first token cancels; one that waits too long for the end has failed; neither
    leaves anything at a replica or in a bucket."""
    overload = {"load": 2.0, "reservation_mu_per_minute": 150.0, "burst_mu_per_minute": 5_000.0}
    model = ModelSpec(id="chat", replicas=1, target_utilization=1.0, sequences_max=8)
    impatient = simulation(model=model, tenants=[chatter(patience_s=1.0, **overload)]).run()
    assert by_name(impatient)["total"].cancelled > 0
    late = simulation(model=model, tenants=[chatter(deadline_s=2.0, **overload)]).run()
    assert by_name(late)["total"].failed["DEADLINE_EXCEEDED"] > 0


def test_shared_prefixes_are_found_and_charged_less() -> None:
    """Tokens found in a prefix cache are counted, and cost less than computed ones."""
    settled = []
    for prefix in ((1, 2, 3, 4), ()):
        requests = tuple(SimRequest(0.5 * at, "", 2_100, 20, prefix) for at in range(40))
        workloads = Workloads(None)
        workloads.put("made", Workload("made", requests, (), ("",), 20.0))
        tenant = chatter(workload="made", load=0.0)
        scenario = simulation(tenants=[tenant], model=ModelSpec(id="chat", replicas=1), workloads=workloads)
        settled.append(by_name(scenario.run())["total"])
    assert settled[0].cached_share > 0.8
    assert settled[1].cached_share == 0.0
    assert settled[0].settled_mu < 0.5 * settled[1].settled_mu


def test_every_policy_routes() -> None:
    """Each replica choice that a scenario may name serves everything at moderate load."""
    for policy in POLICY_NAMES:
        total = by_name(simulation(settings=Settings(duration_s=10.0, policy=policy)).run())["total"]
        assert total.completed == total.received > 30


def test_the_scenarios_that_ship_run() -> None:
    """Every scenario file is right and gives sensible results; the large ones are run for less than their time."""
    paths = sorted(SCENARIOS.glob("*.toml"))
    assert len(paths) >= 5
    for path in paths:
        scenario = read_scenario(path)
        if len(scenario.tenants) > 100:
            models = (replace(scenario.models[0], replicas=8),)
            scenario = replace(scenario, models=models, tenants=scenario.tenants[:8])
        settings = replace(scenario.settings, duration_s=min(6.0, scenario.settings.duration_s))
        result = Simulation(replace(scenario, settings=settings, failures=())).run()
        assert result.requests > 5, path


def test_ten_lines_are_enough() -> None:
    """The smallest scenario plays the traffic that ships with Fairlead."""
    scenario = parse_scenario(
        'duration_s = 10\n[[model]]\nid = "chat"\nreplicas = 4\n[[tenant]]\nid = "acme"\n'
        "reservation_mu_per_minute = 300\nload = 0.65\n"
    )
    assert by_name(Simulation(scenario).run())["acme"].completed > 100


def test_the_results_as_json_and_html() -> None:
    """Everything can be written as JSON and as a page, also when nothing was served."""
    for replicas in (0, 2):
        model = ModelSpec(id="chat", replicas=replicas)
        result = simulation(model=model, settings=Settings(duration_s=5.0, name="<b>")).run()
        read = json.loads(json.dumps(result.as_json(), allow_nan=False))
        assert [tenant["name"] for tenant in read["tenants"]] == ["acme", "total"]
        page = render(result, 1.0)
        assert "<b>" not in page
        assert page.count("<figure>") == 5


def test_unlimited_tenants_share_a_router_by_hash() -> None:
    """Several routers share the traffic about evenly."""
    sim = simulation(settings=Settings(duration_s=20.0, routers=4), tenants=[chatter(), TenantSpec(id="idle")])
    sim.run()
    settled = [router.holds.settled_milli_mu for router in sim.routers]
    assert min(settled) > 0.4 * max(settled)


def test_batch_waits_while_every_replica_is_full() -> None:
    """Replicas whose queues hold one request: batch comes back to wait and nothing of it fails; interactive does."""

    def failed(priority: str) -> dict[str, int]:
        tenant = chatter(load=2.0, priority=priority, reservation_mu_per_minute=4_000.0, burst_mu_per_minute=4_000.0)
        sim = simulation(tenants=[tenant], model=ModelSpec(id="chat", replicas=2, queued_max=1))
        summary = by_name(sim.run())["acme"]
        assert summary.completed > 20
        return {reason: count for reason, count in summary.failed.items() if reason == Reason.QUEUE_FULL.value}

    assert failed("interactive")
    assert not failed("batch")
