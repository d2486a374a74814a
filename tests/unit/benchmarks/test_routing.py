"""The arithmetic of bench-routing: the size of a fleet, what is even, which bars hold, the oracle of stickiness."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest
from rich.console import Console

from benchmarks.report import Report
from benchmarks.routing import bars, policies, recorded
from benchmarks.routing.__main__ import PHASES, wanted_phases
from benchmarks.routing.policies import OLD, OLD_ONE, ONE, POLICIES, PRODUCT, Run
from benchmarks.routing.recorded import LOAD, LOAD_RANGE, MIX, REPLICAS, Setup, sized
from benchmarks.routing.runs import Seen, side_by_side, spread
from benchmarks.routing.session_hash import SessionHash, in_force
from benchmarks.routing.sharded_fleet import ShardedFleet, zipf
from benchmarks.routing.sharder import busiest_over_mean, even_again_s
from control_plane.core.sharding.values import Cause
from data_plane.router.core.candidate import Candidate, Health, hash64
from data_plane.router.core.policies.policy import Ask
from data_plane.router.core.pool import Pool
from simulation.scenario import EXCERPT, TenantSpec


@pytest.mark.parametrize("saturated", [0.1, 1.0, 3.0, 3.4, 4.7, 6.2, 10.0, 40.0])
def test_a_fleet_is_filled_to_what_the_bars_are_about(saturated: float) -> None:
    """Whatever a trace's rate is, the fleet's load lies in the range, and within the fleet's sizes."""
    replicas, scale = sized(saturated)
    assert LOAD_RANGE[0] <= saturated * scale / replicas <= LOAD_RANGE[1]
    assert replicas <= REPLICAS[1]


def test_a_trace_that_fills_a_fleet_keeps_its_rate() -> None:
    """What needs seven replicas is played as recorded."""
    assert sized(7 * LOAD) == (7, 1.0)


def test_even_again_counts_from_the_last_uneven_window() -> None:
    """Even for a moment is not even; never uneven is 0 and still uneven is for ever."""
    windows = [(0.0, 3.0), (30.0, 1.5), (60.0, 1.1), (90.0, 1.3), (120.0, 1.1), (150.0, 1.0)]
    assert even_again_s(windows, 30.0) == 90.0
    assert even_again_s(windows, 120.0) == 0.0
    assert even_again_s([*windows, (180.0, nan)], 30.0) == inf


def test_busiest_over_mean() -> None:
    """Twice the mean is 2; a fleet that does nothing is neither even nor uneven."""
    assert busiest_over_mean([0.2, 0.2, 0.2, 1.0]) == pytest.approx(2.5)
    assert isnan(busiest_over_mean([0.0, 0.0]))


def test_phases_are_named_with_commas_or_spaces() -> None:
    """The order is always the same; nothing named is everything; an unknown name is refused."""
    assert wanted_phases(["decision,policies", "sharder"]) == ["policies", "sharder", "decision"]
    assert wanted_phases([]) == list(PHASES)
    with pytest.raises(SystemExit, match="policy: unknown"):
        wanted_phases(["policy"])


def test_what_was_not_measured_is_missed() -> None:
    """Every bar of a phase that ran stands in the report, and one without a value does not hold."""
    report = Report("routing")
    bars.add(report, "median_tenant_replicas_share", 0.1875)
    bars.miss(report, ["stickiness"])
    assert report.bars.keys() == bars.BARS["stickiness"].keys()
    held = [name for name, bar in report.bars.items() if bar.holds(report.metrics[name])]
    assert held == ["median_tenant_replicas_share"]


def _seen(ttft_p95_s: float, tpot_p95_s: float = 0.1) -> Seen:
    return Seen(100, 0, 0.1, ttft_p95_s, 2 * ttft_p95_s, tpot_p95_s, 0.1, 90_000.0)


def test_ratios_are_of_the_same_seed() -> None:
    """The mean of ratios, seed by seed, and the worst setup for the bar that holds everywhere."""
    fleet = Setup(MIX, (), 7, 10.0, 0.68)
    chat = Setup("chat_conv", (), 7, 10.0, 0.68, conversation=True)
    found = {
        (setup.name, policy): [_seen(4.0), _seen(8.0)]
        for setup in (fleet, chat)
        for policy in (*POLICIES, OLD, ONE, OLD_ONE)
    }
    found[MIX, PRODUCT] = [_seen(2.0, 0.09), _seen(2.0, 0.09)]
    found[MIX, OLD] = [_seen(2.2), _seen(2.2)]
    found["chat_conv", PRODUCT] = [_seen(3.0), _seen(6.0)]
    metrics = policies.metrics([fleet, chat], found)
    assert metrics["mix_ttft_p95_over_two_choices_ratio"] == pytest.approx((0.5 + 0.25) / 2)
    assert metrics["mix_tpot_p95_over_two_choices_ratio"] == pytest.approx(0.9)
    assert metrics["mix_reports_5s_old_ttft_p95_ratio"] == pytest.approx(1.1)
    assert metrics["mix_reports_5s_old_one_router_ttft_p95_ratio"] == pytest.approx(1.0)
    assert metrics["conversation_ttft_p95_over_two_choices_ratio"] == pytest.approx(0.75)
    assert metrics["worst_trace_ttft_p95_over_least_requests_ratio"] == pytest.approx(0.75)


def test_spread_says_least_and_greatest() -> None:
    """One seed has none; what is not a number says so."""
    assert spread([1.0, 2.0, 3.0]) == "2.00 (1.00-3.00)"
    assert spread([1.0], 0) == "1"
    assert spread([1.0, nan]) == "-"


def test_without_traces_there_still_is_a_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The excerpt by itself is a conversation service, and it is mixed with longer and shorter answers."""
    monkeypatch.delenv("TRACES", raising=False)
    alone = recorded.found(Console(quiet=True))
    assert list(alone) == [MIX, EXCERPT]
    assert len(alone[MIX]) == 3
    assert recorded.setup(EXCERPT, alone[EXCERPT], 130.0).conversation
    mu_per_minute, requests_per_s = recorded.offered(alone[MIX])
    assert mu_per_minute > recorded.offered(alone[EXCERPT])[0] > 0
    assert requests_per_s > 6.0


def test_one_simulation_answers_everything() -> None:
    """A small fleet under the platform's rule, with reports as they are and 5 s old."""
    tenants = recorded.scaled((TenantSpec(id="chat", workload=EXCERPT),), 0.5)
    fleet = Setup("small", tenants, 2, 600.0, 0.5)
    for policy in (PRODUCT, OLD_ONE):
        found = policies.play(Run(fleet, policy, 2))
        assert found.requests > 10
        assert found.unserved == 0
        assert found.ttft_p95_s >= found.ttft_p50_s > 0


def test_the_oracle_never_leaves_a_session() -> None:
    """Whatever the load is, one session means one replica; sessions use all of them."""
    members = [Candidate(name, hash64(name), Health.READY, 100_000, load, 0) for name, load in _LOADS.items()]
    pool = Pool(members)

    def home(session: str, request: str) -> str:
        pick = SessionHash().pick(Ask(100, 100, 10, session_id=session, request_id=request), pool)
        assert pick is not None
        return pick.replica_id

    assert len({home("one", str(number)) for number in range(50)}) == 1
    assert {home(str(number), "") for number in range(50)} == _LOADS.keys()


_LOADS = {"a": 0, "b": 50_000, "c": 900_000}


def test_the_oracle_is_in_force_only_meanwhile() -> None:
    """Simulations that are made later have the rule they name."""
    import simulation.routing

    before = vars(simulation.routing)["make_policy"]
    with in_force():
        assert isinstance(vars(simulation.routing)["make_policy"]("cost", None), SessionHash)
    assert vars(simulation.routing)["make_policy"] is before


def test_a_fleet_settles_and_a_loss_moves_its_part() -> None:
    """Without news nothing moves; the load of a lost replica goes elsewhere, as a removal."""
    fleet = ShardedFleet(8, zipf(16, 0.6 * 8 * 100_000))
    fleet.settle(10)
    fleet.round()
    quiet = sum(fleet.moved.values())
    fleet.lose(fleet.replica_ids[0])
    fleet.round(balance=False, after_ms=1_000)
    assert quiet <= 0.05 * fleet.load
    assert fleet.moved[Cause.REMOVAL] > 0
    assert len(fleet.replica_ids) == 7


def test_jobs_come_back_in_order() -> None:
    """Results stand where their jobs stood, whoever was faster."""
    done: list[tuple[int, int]] = []
    assert side_by_side(abs, [-3, -2, -1], lambda of, every: done.append((of, every))) == [3, 2, 1]
    assert done == [(1, 3), (2, 3), (3, 3)]
