"""Values of a scenario that leave each other no meaning. Each check raises InvalidArgumentError and names the key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairlead.errors import InvalidArgumentError

if TYPE_CHECKING:
    from simulation.scenario import FailureSpec, GroupSpec, ModelSpec, Settings


def check_settings(settings: Settings) -> None:
    """Refuses an autoscaler without quota: what it follows is the allocator's target, and that is made of demand."""
    if settings.autoscaler and not settings.quota:
        raise InvalidArgumentError(
            "the autoscaler follows what tenants ask of their quota: leave quota on, or autoscaler off", field="quota"
        )


def check_replicas(model: ModelSpec) -> None:
    """Refuses a model whose fewest replicas are more than its most."""
    most = model.replicas_max or model.replicas
    if model.replicas_min > most:
        whose = "replicas_max" if model.replicas_max else "replicas, which is the most where replicas_max is not given"
        raise InvalidArgumentError(
            f"model {model.id!r}: replicas_min {model.replicas_min} is above {most}, its {whose}", field="replicas_min"
        )


def check_failures(
    failures: Sequence[FailureSpec], models: Sequence[ModelSpec], groups: Sequence[GroupSpec], duration_s: float
) -> None:
    """Refuses a failure of a replica that is not there at the start, or after the end of the run."""
    for at, failure in enumerate(failures, 1):
        replicas = next(model.replicas for model in models if model.id == failure.model)
        replicas += sum(group.replicas for group in groups if group.model == failure.model)
        if failure.replica > replicas:
            raise InvalidArgumentError(
                f"a failure names replica {failure.replica} of {failure.model!r}, which starts with {replicas}",
                field="replica",
            )
        if failure.at_s > duration_s:
            raise InvalidArgumentError(
                f"failure {at} ({failure.kind}) is at {failure.at_s:g} s, after the run's {duration_s:g} s: "
                "take a longer duration_s or leave it out",
                field="at_s",
            )
