"""The verdict on a profile: what counts, how long it must last, who is to blame, and what would fit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.core.drift import TOKENS_MIN, ModelDrift, Reading, median_ratio, scaled, tolerance_of
from model_units.cost import CostProfile, Evidence
from model_units.latency import healthy_tpot_ms

CURVE = ((1.0, 8.0), (10.0, 12.0), (50.0, 50.0))


def profile(**changes: object) -> CostProfile:
    """A profile with a curve."""
    fields: dict[str, object] = {
        "profile_id": "m/h100/4",
        "model": "m",
        "hardware": "h100",
        "engine": "simulated",
        "tpot_objective_ms": 50.0,
        "a": 1.934e-5,
        "b": 2.764e-5,
        "d": 4.017e-10,
        "g": 4.532e-8,
        "provenance": "a test",
        "version": 4,
        "evidence": Evidence(latency_curve=CURVE, intervals={"a": (1.9e-5, 2.0e-5)}),
    }
    return CostProfile(**(fields | changes))  # type: ignore[arg-type]  # each test names fields that exist


def watch(**changes: object) -> ModelDrift:
    """A watch that begins with nothing known."""
    return ModelDrift("model", profile(), start_s=30.0, **changes)  # type: ignore[arg-type]


def readings(*ratios: float, tokens: int = 1_000) -> list[Reading]:
    """One replica each."""
    return [Reading(f"r{number}", ratio, tokens) for number, ratio in enumerate(ratios)]


def kinds(drift: ModelDrift, says: Sequence[Reading], *times_s: float) -> list[str]:
    """What happened over looks at these times."""
    return [each.kind for now_s in times_s for each in drift.look(says, now_s).happenings]


def test_tolerance_is_what_the_profile_does_not_know() -> None:
    """Proves that the tolerance is a tenth, or twice the curve's spread, or the error the profile states."""
    assert tolerance_of(profile(evidence=None)) == 0.10
    assert tolerance_of(profile(evidence=Evidence(latency_spread=0.08))) == 0.16
    assert tolerance_of(profile(evidence=Evidence(class_errors={"chat": -0.3}))) == 0.3


def test_a_drift_counts_once_it_has_lasted() -> None:
    """Proves one event after thirty seconds and not before, with a proposal from then on."""
    drift = watch()
    slow = readings(1.5, 1.6, 1.4)
    assert kinds(drift, slow, 0, 10, 29.9) == []
    verdict = drift.look(slow, 30.0)
    assert [each.kind for each in verdict.happenings] == ["PROFILE_DRIFT"]
    assert verdict.drifting
    assert verdict.ratio == 1.5
    assert (verdict.replicas, verdict.replicas_drifting) == (3, 3)
    assert verdict.proposal is not None
    assert verdict.proposal.b == pytest.approx(1.5 * 2.764e-5)
    assert kinds(drift, slow, 31, 100) == []


def test_a_spell_in_between_starts_the_time_anew() -> None:
    """Proves that thirty seconds means thirty seconds on end."""
    drift = watch()
    assert kinds(drift, readings(1.5), 0, 20) == []
    assert kinds(drift, readings(1.05), 25) == []
    assert kinds(drift, readings(1.5), 30, 59) == []
    assert kinds(drift, readings(1.5), 60) == ["PROFILE_DRIFT"]


def test_a_drift_ends_well_inside_the_tolerance() -> None:
    """Proves that coming back to the edge of the tolerance is not enough, silence neither, and half of it is."""
    drift = watch(drifting=True, ratio=1.5)
    for now_s, says in enumerate([readings(1.09), readings(1.06), [], readings(1.5), readings(0.94)]):
        verdict = drift.look(says, float(now_s))
        assert verdict.drifting
        assert verdict.happenings == ()
        assert verdict.proposal is not None
    assert kinds(drift, readings(1.04), 10) == ["DRIFT_ENDED"]
    assert not drift.look(readings(1.04), 11.0).drifting


def test_one_slow_replica_is_not_the_profile() -> None:
    """Proves that a minority beyond the tolerance is reported by name, once, and again after it had recovered."""
    drift = watch()
    says = readings(1.0, 1.02, 1.8)
    assert kinds(drift, says, 0, 29) == []
    verdict = drift.look(says, 30.0)
    assert [(each.kind, each.facts["replica_id"]) for each in verdict.happenings] == [("REPLICA_SLOW", "r2")]
    assert not verdict.drifting
    assert verdict.replicas_drifting == 1
    assert kinds(drift, says, 31, 100) == []
    assert kinds(drift, readings(1.0, 1.0, 1.0), 101) == []
    assert kinds(drift, says, 110, 139) == []
    assert kinds(drift, says, 140) == ["REPLICA_SLOW"]


def test_while_the_profile_drifts_replicas_are_measured_by_the_others() -> None:
    """Proves that a fleet-wide slowdown blames nobody, and one that is slower still is found all the same."""
    drift = watch()
    says = readings(1.5, 1.5, 1.5, 2.2)
    assert kinds(drift, says, 0, 30) == ["PROFILE_DRIFT"]
    assert kinds(drift, says, 59) == []
    assert kinds(drift, says, 61) == ["REPLICA_SLOW"]


def test_a_new_leader_repeats_nothing() -> None:
    """Proves that what a leader before found is not found anew, and that it can end under the next."""
    drift = watch(drifting=True, ratio=1.5, slow=("r3",))
    says = readings(1.5, 1.5, 1.5, 2.2)
    assert kinds(drift, says, 0, 60) == []
    assert kinds(drift, readings(1.0, 1.0, 1.0, 1.0), 61) == ["DRIFT_ENDED"]


def test_a_faster_engine_drifts_too() -> None:
    """Proves that a profile that has become too dear is found, and that fast replicas are not called slow."""
    drift = watch()
    assert kinds(drift, readings(0.7, 0.75), 0, 30, 90) == ["PROFILE_DRIFT"]
    verdict = drift.look(readings(0.7, 0.75), 91.0)
    assert verdict.proposal is not None
    assert verdict.proposal.a < profile().a


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True), st.integers(0, TOKENS_MIN - 1), st.floats(0.1, 100.0)
        ),
        max_size=30,
    )
)
def test_no_alarm_without_enough_tokens(says: list[tuple[float, int, float]]) -> None:
    """Proves that whatever replicas say, too few tokens behind it never raise anything."""
    drift, now_s = watch(), 0.0
    for ratio, tokens, pause_s in says:
        now_s += pause_s
        verdict = drift.look([Reading("r", ratio, tokens)], now_s)
        assert (verdict.ratio, verdict.replicas, verdict.drifting, verdict.happenings) == (0.0, 0, False, ())


@given(st.lists(st.tuples(st.floats(0.1, 10.0), st.integers(200, 10_000)), min_size=1, max_size=9), st.floats(0.5, 2.0))
def test_the_median_is_somebodys_and_scales(says: list[tuple[float, int]], factor: float) -> None:
    """Proves that half of the tokens lie on each side of the fleet's ratio, and that slowing all by f multiplies it."""
    given_ = [Reading(str(number), ratio, tokens) for number, (ratio, tokens) in enumerate(says)]
    middle = median_ratio(given_)
    total = sum(each.tokens for each in given_)
    assert 2 * sum(each.tokens for each in given_ if each.ratio <= middle) >= total
    assert 2 * sum(each.tokens for each in given_ if each.ratio >= middle) >= total
    slower = [Reading(each.replica_id, factor * each.ratio, each.tokens) for each in given_]
    assert median_ratio(slower) == factor * middle


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=60), st.floats(0.5, 10.0))
def test_alarms_alternate_and_last(ratios: list[float], pause_s: float) -> None:
    """Proves on any course of the ratio that begin and end alternate, and that no begin comes before its time."""
    drift = watch()
    beyond_since_s: float | None = None
    expected = itertools.cycle(["PROFILE_DRIFT", "DRIFT_ENDED"])
    for number, ratio in enumerate(ratios):
        now_s = number * pause_s
        if abs(ratio - 1.0) <= tolerance_of(profile()):
            beyond_since_s = None
        elif beyond_since_s is None:
            beyond_since_s = now_s
        for each in drift.look(readings(ratio), now_s).happenings:
            if each.kind == "REPLICA_SLOW":
                continue
            assert each.kind == next(expected)
            if each.kind == "PROFILE_DRIFT":
                assert beyond_since_s is not None
                assert now_s - beyond_since_s >= 30.0


@given(st.floats(0.2, 5.0), st.floats(0.5, 60.0))
def test_the_proposal_explains_what_was_seen(factor: float, load_ms: float) -> None:
    """Proves that with the proposed profile the very engine that is slower by f shows a ratio of 1."""
    proposal = scaled(profile(), factor)
    assert proposal is not None
    assert proposal.evidence is not None
    assert (proposal.version, proposal.profile_id) == (5, "m/h100/5")
    assert proposal.evidence.intervals["a"] == (1.9e-5 * factor, 2.0e-5 * factor)
    # As many sequences: f times the time per token, the same work by f times the prices.
    seen_ms = factor * healthy_tpot_ms(CURVE, load_ms)
    assert healthy_tpot_ms(proposal.evidence.latency_curve, factor * load_ms) == pytest.approx(seen_ms)


def test_a_price_out_of_range_is_not_proposed() -> None:
    """Proves that a ratio that no profile may have leads to no proposal instead of an error."""
    assert scaled(profile(a=9.0), 2.0) is None
