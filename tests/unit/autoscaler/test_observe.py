"""What the store and the actuator say, as the scaling decision sees it."""

from __future__ import annotations

import pytest

from data_plane.autoscaler.actuator import RunningSeat
from data_plane.autoscaler.core.seat import Registered, Seat
from data_plane.autoscaler.observe import registration_of, view_model
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.engine.v1 import engine_pb2

MODEL = admin_pb2.Model(model_id="m", replicas_min=1, replicas_max=4)
SEAT = RunningSeat("m", "replica-1", start_number=2, pid=42, alive=True)


def replica(slot: str = "replica-1", pid: int = 42, state: str = "READY", model: str = "m") -> engine_pb2.Replica:
    return engine_pb2.Replica(
        replica_id=f"{slot}-{pid}",
        model_id=model,
        slot=slot,
        agent_pid=pid,
        state=engine_pb2.ReplicaState.Value(f"REPLICA_STATE_{state}"),
        capacity_milli_mu_per_minute=100_000,
    )


def test_record_of_an_earlier_process_does_not_count() -> None:
    """Until its lease ends, the record of a crashed agent stays; it says nothing about the process that replaced it."""
    assert registration_of(SEAT, [replica(pid=41)]) is None
    assert registration_of(SEAT, [replica(pid=41), replica()]) == replica()
    view = view_model("m", MODEL, None, [SEAT], [replica(pid=41)], {})
    assert view.seats == (Seat("replica-1", 2, True),)
    assert view.foreign == ()


def test_seat_whose_process_is_not_known_yet_matches_nothing() -> None:
    """Process id 0 means unknown and is no identity."""
    assert registration_of(RunningSeat("m", "replica-1", 0, 0, True), [replica(pid=0)]) is None


@pytest.mark.parametrize(("target", "floor", "need"), [(300, 100, 300), (0, 250, 250)])
def test_need_is_target_or_floor(target: int, floor: int, need: int) -> None:
    """The floor holds even when the target forgot it."""
    asked = capacity_pb2.CapacityTarget(target_milli_mu_per_minute=target, floor_milli_mu_per_minute=floor)
    assert view_model("m", MODEL, asked, [], [], {}).need == need


def test_no_target_is_not_a_target_of_nothing() -> None:
    """Before the allocator has spoken the need is unknown, not zero."""
    assert view_model("m", MODEL, None, [], [], {}).need is None


def test_deleted_model_needs_nothing() -> None:
    """A deleted model wants no replicas, yet has none above its maximum: they drain after the stable window."""
    view = view_model("m", None, None, [SEAT], [replica()], {})
    assert (view.need, view.replicas_min, view.replicas_max) == (0, 0, 1)


def test_replicas_of_others_count_while_they_live() -> None:
    """Replicas in no seat of ours are foreign; those that drain or are unhealthy do not count."""
    registered = [replica("", 7), replica("replica-9", 8, "STARTING"), replica("x", 9, "DRAINING"), replica()]
    registered.append(replica("y", 10, "CALIBRATING"))
    view = view_model("m", MODEL, None, [SEAT], registered, {"replica-1-42": 3})
    assert [record.state for record in view.foreign] == [
        Registered.READY,
        Registered.STARTING,
        Registered.CALIBRATING,
    ]
    assert view.seats[0].requests_in_flight == 3
