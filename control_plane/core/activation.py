"""Which cost profile of a model is in force, and the one step back."""

from __future__ import annotations

from fairlead.admin.v1 import admin_pb2
from fairlead.errors import FailedPreconditionError, NotFoundError
from model_units.profiles import built_in_profiles


def profile_in_force(model: admin_pb2.Model) -> str:
    """Id of the profile a model is priced with: the one it names, else its hardware's default.

    Returns:
        The id; empty where the model names none and its hardware has no default.
    """
    if model.profile_id:
        return model.profile_id
    try:
        return built_in_profiles().default_for(model.engine.hardware).profile_id
    except NotFoundError:
        return ""


def activation(model: admin_pb2.Model, profile_id: str) -> admin_pb2.Model:
    """The model with another profile in force, and the present one kept for a rollback.

    Args:
        model: As stored.
        profile_id: The profile to put into force; whether it exists and fits is for the caller to check.

    Returns:
        A copy to be stored. Where the profile is in force already, what a rollback goes back to stays as it was.
    """
    present = profile_in_force(model)
    changed = _copy(model)
    changed.profile_id = profile_id
    if profile_id != present:
        changed.previous_profile_id = present
    return changed


def rollback(model: admin_pb2.Model) -> admin_pb2.Model:
    """The model with the profile in force that was before the present one; rolling back twice changes nothing.

    Args:
        model: As stored.

    Returns:
        A copy to be stored.

    Raises:
        FailedPreconditionError: There was no other profile before.
    """
    if not model.previous_profile_id:
        raise FailedPreconditionError(
            f"model {model.model_id!r} had no other profile before; activate the one you want by its id"
        )
    return activation(model, model.previous_profile_id)


def _copy(model: admin_pb2.Model) -> admin_pb2.Model:
    copy = admin_pb2.Model()
    copy.CopyFrom(model)
    return copy
