"""Which profile is in force, and the one step back."""

from __future__ import annotations

import pytest

from control_plane.core.activation import activation, profile_in_force, rollback
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import FailedPreconditionError

DEFAULT = "llama-3.1-8b/h100/2"


def model(profile_id: str = "", previous: str = "") -> admin_pb2.Model:
    """A model on H100s."""
    engine = admin_pb2.EngineSpec(engine="simulated", hardware="h100")
    return admin_pb2.Model(model_id="m", engine=engine, profile_id=profile_id, previous_profile_id=previous)


def test_activation_keeps_what_was_in_force() -> None:
    """The profile in force before, the hardware's default included, is kept for a rollback; the input is left alone."""
    before = model()
    first = activation(before, "m/h100/1")
    assert (first.profile_id, first.previous_profile_id) == ("m/h100/1", DEFAULT)
    second = activation(first, "m/h100/2")
    assert (second.profile_id, second.previous_profile_id) == ("m/h100/2", "m/h100/1")
    assert before == model()


def test_activating_what_is_in_force_keeps_the_way_back() -> None:
    """Activating a profile again does not make it its own predecessor."""
    again = activation(model("m/h100/2", "m/h100/1"), "m/h100/2")
    assert (again.profile_id, again.previous_profile_id) == ("m/h100/2", "m/h100/1")
    assert activation(model(), DEFAULT).previous_profile_id == ""


def test_rollback_swaps() -> None:
    """A rollback swaps the two profiles, so a second one restores what the first took back."""
    back = rollback(model("m/h100/2", "m/h100/1"))
    assert (back.profile_id, back.previous_profile_id) == ("m/h100/1", "m/h100/2")
    assert rollback(back) == model("m/h100/2", "m/h100/1")


def test_rollback_needs_somewhere_to_go() -> None:
    """A model that never had another profile cannot be rolled back."""
    with pytest.raises(FailedPreconditionError, match="no other profile"):
        rollback(model("m/h100/2"))


def test_hardware_without_a_default_has_no_profile_in_force() -> None:
    """A model that names no profile on unknown hardware has none, and that is no error here."""
    unknown = admin_pb2.Model(model_id="m", engine=admin_pb2.EngineSpec(hardware="abacus"))
    assert profile_in_force(unknown) == ""
    assert activation(unknown, "m/abacus/1").previous_profile_id == ""
