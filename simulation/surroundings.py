"""What a simulated router has around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.shard_map import ShardMap
from data_plane.router.core.accounts import Outcome
from model_units.cost import CostProfile
from simulation.flight import Flight
from simulation.kernel import Loop

if TYPE_CHECKING:
    from simulation.replica import Replica


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a router is given.

    Attributes:
        loop: Virtual time.
        profiles: Cost profile by model.
        replicas: Every replica that ever was, by id: the network.
        ended: Told of every end of a request; with the seconds after which a refused one may come back, if any.
        bucket_of: The time bucket of the books now.
        newest: The assignments in the store, by model: what a router would know if news took no time.
    """

    loop: Loop
    profiles: dict[str, CostProfile]
    replicas: dict[str, Replica]
    ended: Callable[[Flight, Outcome, float | None], None]
    bucket_of: Callable[[], int]
    newest: dict[str, ShardMap]
