"""Which model is meant where none was named."""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.errors import NotFoundError, Reason
from fairlead.sdk.results import ModelInfo


def choose_model(name: str, models: Sequence[ModelInfo], who: str) -> ModelInfo:
    """Finds the model to use among those a tenant may use.

    Args:
        name: The model's id; empty to take the only one.
        models: As listed by the platform.
        who: The tenant, for the message.

    Raises:
        NotFoundError: It is not among them, or there is not exactly one to take.
    """
    ids = ", ".join(model.id for model in models) or "none"
    if name:
        for model in models:
            if model.id == name:
                return model
        raise NotFoundError(f"{who} may not use the model {name}; it may use: {ids}", reason=Reason.UNKNOWN_MODEL)
    if len(models) == 1:
        return models[0]
    raise NotFoundError(f"name the model to use; {who} may use: {ids}", reason=Reason.UNKNOWN_MODEL)
