"""Decisions of calibrations: what may be asked, what goes on with what, which replica is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.calibration.core.choose import Wanted, candidates
from control_plane.calibration.core.options import BUDGET_S, budget_s, filled_in, resumed, same_measurement
from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

WANTED = Wanted("m", hardware="h100")


def options(**fields: object) -> pb.CalibrationOptions:
    return pb.CalibrationOptions(**fields)  # type: ignore[arg-type]  # each test's own fields


def replica(name: str, state: str = "READY", **fields: object) -> engine_pb2.Replica:
    fields = {"model_id": "m", "hardware": "h100", "engine": "simulated", "engine_version": "1"} | fields
    state_number = engine_pb2.ReplicaState.Value(f"REPLICA_STATE_{state}")
    return engine_pb2.Replica(replica_id=name, state=state_number, **fields)  # type: ignore[arg-type]


def test_what_nobody_set_is_filled_in() -> None:
    """Proves the defaults: the objective in force, a quarter of an hour, five percent, the attention form."""
    filled = filled_in(options(), 50.0)
    assert (filled.tpot_objective_ms, filled.error_max, filled.seed) == (50.0, 0.05, 1)
    assert budget_s(filled) == BUDGET_S == 900.0
    assert filled.form == pb.COST_FORM_ATTENTION
    assert filled_in(options(tpot_objective_ms=30.0), 50.0).tpot_objective_ms == 30.0
    assert filled_in(filled, 99.0) == filled, "filling in twice changes nothing"


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("seed", options(seed=2**63 + 1)),
        ("tpot_objective_ms", options(tpot_objective_ms=-1.0)),
        ("tpot_objective_ms", options(tpot_objective_ms=float("nan"))),
        ("ttft_objective_ms", options(tpot_objective_ms=1.0, ttft_objective_ms=float("inf"))),
        ("error_max", options(tpot_objective_ms=1.0, error_max=1.5)),
        ("replica_id", options(tpot_objective_ms=1.0, replica_id="a/b")),
        ("form", options(tpot_objective_ms=1.0, form=9)),
        ("budget", pb.CalibrationOptions(tpot_objective_ms=1.0, budget={"seconds": 299})),  # type: ignore[arg-type]
        ("budget", pb.CalibrationOptions(tpot_objective_ms=1.0, budget={"seconds": 10**6})),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, asked: pb.CalibrationOptions) -> None:
    """Proves that every option out of its range is refused by its name."""
    with pytest.raises(InvalidArgumentError) as raised:
        filled_in(asked, 0.0)
    assert raised.value.field == f"options.{field}"


def test_only_the_same_measurement_goes_on() -> None:
    """Proves that objective, form and a seed that was set decide whether old measurements serve, and nothing else."""
    paused = filled_in(options(seed=7, error_max=0.1), 50.0)
    for asked in (options(), options(seed=7), options(error_max=0.01, force=True, replica_id="r")):
        assert same_measurement(paused, filled_in(asked, 50.0), asked)
    for asked in (
        options(seed=8),
        options(tpot_objective_ms=40.0),
        options(ttft_objective_ms=500.0),
        options(form=pb.COST_FORM_PRODUCT),
    ):
        assert not same_measurement(paused, filled_in(asked, 50.0), asked)


def test_what_goes_on_keeps_what_was_asked_first() -> None:
    """Proves that going on keeps seed, budget and bar unless they are set anew, and takes the wishes of now."""
    paused = filled_in(pb.CalibrationOptions(seed=7, error_max=0.1, budget={"seconds": 600}), 50.0)  # type: ignore[arg-type]
    asked = options(keep_active=True, take_last_replica=True)
    again = resumed(paused, filled_in(asked, 50.0), asked)
    assert (again.seed, again.error_max, budget_s(again)) == (7, 0.1, 600.0)
    assert again.keep_active
    assert again.take_last_replica
    asked = pb.CalibrationOptions(error_max=0.02, budget={"seconds": 400})  # type: ignore[arg-type]
    again = resumed(paused, filled_in(asked, 50.0), asked)
    assert (again.error_max, budget_s(again)) == (0.02, 400.0)


def test_ready_ones_of_the_right_kind_are_candidates() -> None:
    """Proves that only READY replicas of the model and hardware may be taken, and none that failed."""
    fleet = [
        replica("c"),
        replica("a"),
        replica("b", "DRAINING"),
        replica("x", hardware="a100"),
        replica("y", model_id="other"),
        replica("z", "CALIBRATING"),
    ]
    assert [found.replica_id for found in candidates(WANTED, fleet)] == ["a", "c"]
    assert [found.replica_id for found in candidates(WANTED, fleet, {"a"})] == ["c"]
    with pytest.raises(FailedPreconditionError, match="a failed"):
        candidates(WANTED, fleet, {"a", "c"})


@given(
    fleet=st.lists(
        st.tuples(
            st.sampled_from(["READY", "CALIBRATING", "DRAINING", "UNHEALTHY"]), st.sampled_from(["h100", "a100"])
        ),
        max_size=6,
    ),
    avoided=st.sets(st.integers(0, 5), max_size=3),
    take_last=st.booleans(),
)
def test_whatever_the_fleet_is(fleet: list[tuple[str, str]], avoided: set[int], take_last: bool) -> None:
    """Proves over random fleets: what is offered serves, fits, has not failed, and leaves tenants somebody else."""
    replicas = [replica(str(number), state, hardware=hardware) for number, (state, hardware) in enumerate(fleet)]
    ready = {str(number) for number, (state, _) in enumerate(fleet) if state == "READY"}
    fitting = {str(number) for number, (_, hardware) in enumerate(fleet) if hardware == "h100"}
    possible = ready & fitting - {str(number) for number in avoided}
    expected = possible if take_last or len(ready) > 1 else set()
    try:
        offered = candidates(
            Wanted("m", hardware="h100", take_last=take_last), replicas, {str(number) for number in avoided}
        )
    except FailedPreconditionError:
        offered = []
    assert {each.replica_id for each in offered} == expected


def test_the_last_replica_is_taken_only_when_told() -> None:
    """Proves the rule that protects tenants, and that its refusal says what to do."""
    fleet = [replica("a"), replica("b", "UNHEALTHY"), replica("other", model_id="n")]
    with pytest.raises(FailedPreconditionError, match="take_last_replica"):
        candidates(WANTED, fleet)
    assert candidates(Wanted("m", take_last=True), fleet)[0].replica_id == "a"
    # One on other hardware serves the same tenants.
    assert candidates(WANTED, [*fleet, replica("c", hardware="a100")])[0].replica_id == "a"


def test_refusals_say_why() -> None:
    """Proves that a wrong name, wrong hardware, another engine and an empty model are told apart."""
    fleet = [replica("a"), replica("b", hardware="a100")]
    with pytest.raises(NotFoundError, match="no replica 'z'"):
        candidates(Wanted("m", replica_id="z"), fleet)
    with pytest.raises(FailedPreconditionError, match="runs on 'a100'"):
        candidates(Wanted("m", replica_id="b", hardware="h100"), fleet)
    with pytest.raises(FailedPreconditionError, match="start with fresh"):
        candidates(Wanted("m", hardware="h100", engine="simulated 2"), fleet)
    with pytest.raises(FailedPreconditionError, match="has no replica"):
        candidates(WANTED, [])


def test_what_was_measured_binds_hardware_and_engine() -> None:
    """Proves that a calibration that has measured goes on with the same hardware and engine only."""
    model = admin_pb2.Model(model_id="m", engine=admin_pb2.EngineSpec(hardware="h100"))
    calibration = pb.Calibration(model_id="m", hardware="a100", engine="simulated 1")
    assert Wanted.of(calibration, model) == Wanted("m", hardware="h100")
    calibration.experiments.add()
    calibration.sequences_max = 8
    wanted = Wanted.of(calibration, model)
    assert wanted == Wanted("m", hardware="a100", engine="simulated 1", limits=(8, 0, 0))
    with pytest.raises(FailedPreconditionError, match="other limits"):
        candidates(wanted, [replica("a", hardware="a100")])
    twins = [replica(name, hardware="a100", sequences_max=8) for name in "ab"]
    assert len(candidates(wanted, twins)) == 2
