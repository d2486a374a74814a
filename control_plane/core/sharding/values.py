"""What the sharder decides from and what it decides."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common.shard_map import Generation
from model_units.units import MilliModelUnitsPerMinute as Rate


class Life(enum.Enum):
    """What the sharder may do with a replica."""

    OPEN = "open"
    """Serves, and takes more."""
    LEAVING = "leaving"
    """Is being drained: what it serves moves away before it goes."""


class Cause(enum.Enum):
    """Why a replica came to a slice or left it."""

    REMOVAL = "removal"
    DRAIN = "drain"
    ADDITION = "addition"
    SHRINK = "shrink"
    BALANCE = "balance"
    OVERLAP = "overlap"


@dataclass(frozen=True, slots=True)
class Server:
    """A replica as the sharder sees it. What is not listed is gone.

    Attributes:
        replica_id: Unique for every start of an agent.
        seat: What stays when it is replaced: the actuator's slot, or the id where there is none.
        capacity: What it serves, mMU per minute; 0 and less counts as a replica's by definition.
        life: Whether it stays.
    """

    replica_id: str
    seat: str
    capacity: Rate
    life: Life = Life.OPEN


@dataclass(frozen=True, slots=True)
class KeyLoad:
    """Load of one part of the key space at one replica, as its agent reports it.

    Attributes:
        first_key: Where it begins; a part never lies in two tenants.
        rate: What arrived there, mMU per minute, 0 or more.
        warm_tokens: Its prompt tokens in that replica's prefix cache, 0 or more.
        in_flight: Its requests there.
        tenant_id: Whose; empty where that is not known.
    """

    first_key: int
    rate: int
    warm_tokens: int = 0
    in_flight: int = 0
    tenant_id: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """One model at one moment.

    Attributes:
        servers: Its replicas that can serve, in any order.
        reserved: Reserved rate by tenant, mMU per minute.
        loads: What each replica reported last, by replica id; replicas that said nothing (yet) are left out. Of one
            that is gone: what was in flight there when it went, where that is known.
        token_milli_mu: Price of computing one prompt token again, mMU, 0 or more: what a warm token is worth.
    """

    servers: Sequence[Server]
    reserved: Mapping[str, Rate] = field(default_factory=dict)
    loads: Mapping[str, Sequence[KeyLoad]] = field(default_factory=dict)
    token_milli_mu: float = 0.0


@dataclass(frozen=True, slots=True)
class Slice:
    """A range of keys and the replicas that serve it.

    Attributes:
        first_key: Where it begins; it ends where the next one begins.
        replica_ids: Its subset, sorted, at least one.
        tenant_id: Whose, where it holds keys of one known tenant only; else empty.
        load: What it was placed with, mMU per minute.
        frozen_until_ms: Until then it gets no fresh seats; 0 means it is not frozen.
        shrinkable_since_ms: Since when fewer replicas would do; 0 means they would not.
    """

    first_key: int
    replica_ids: tuple[str, ...]
    tenant_id: str = ""
    load: int = 0
    frozen_until_ms: int = 0
    shrinkable_since_ms: int = 0


@dataclass(frozen=True, slots=True)
class Move:
    """One replica that came to a slice (no `from`), left it (no `to`), or left it for another.

    Attributes:
        first_key: The slice.
        tenant_id: Whose, as in `Slice`.
        from_replica_id: Who left, or empty.
        to_replica_id: Who came, or empty.
        cause: Why.
        load: Load that goes elsewhere by it, mMU per minute.
        warm_tokens: Cached prompt tokens that are lost by it.
    """

    first_key: int
    tenant_id: str
    from_replica_id: str
    to_replica_id: str
    cause: Cause
    load: int
    warm_tokens: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Who serves what on one model.

    Attributes:
        generation: Its age.
        slices: The whole key space in order; the first begins at 0.
        seats: Seat by replica id, of every replica that a slice names.
        reason: Why it was computed, one sentence.
        moves: What it changed, the largest load first.
        moved: Load that changed its replica, mMU per minute.
    """

    generation: Generation
    slices: tuple[Slice, ...]
    seats: Mapping[str, str]
    reason: str = ""
    moves: tuple[Move, ...] = ()
    moved: int = 0

    def members(self) -> set[str]:
        """Every replica that it names."""
        return {replica_id for each in self.slices for replica_id in each.replica_ids}


@dataclass(frozen=True, slots=True)
class Happened:
    """Something an operator wants to know of a round.

    Attributes:
        kind: "KEY_OF_DEATH".
        tenant_id: Whose slice, or empty.
        message: One sentence, and what to do.
        facts: The numbers behind it.
    """

    kind: str
    tenant_id: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """What a round decided.

    Attributes:
        placement: The new one; None where nothing changes, or where there is nobody to serve: an empty view is not
            "everyone is dead", and routers keep the last placement.
        happened: For operators.
        heat: Load that each replica reported, mMU per minute, by replica id.
        slice_loads: Load of each slice now, mMU per minute, by first key.
    """

    placement: Placement | None
    happened: tuple[Happened, ...] = ()
    heat: Mapping[str, int] = field(default_factory=dict)
    slice_loads: Mapping[int, int] = field(default_factory=dict)
