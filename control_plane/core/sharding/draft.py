"""A placement that is being worked on: who serves which slice, and how busy that makes everybody.

A slice's load is shared by its subset in proportion to capacity and pull (`pull.py`). Routers do better than that,
because they see queues; what is even here is even enough there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from control_plane.core.sharding.values import Cause, Life, Move, Server
from model_units.units import REPLICA_CAPACITY


@dataclass(slots=True, eq=False)
class Piece:
    """A slice that is being worked on.

    Attributes:
        at: Its place among the slices.
        first_key: Where it begins.
        tenant_id: Whose, or empty.
        load: Measured, mMU per minute.
        reserved: Its part of what its tenant has reserved, mMU per minute.
        planned: What it is placed with: measured, or the part of its reservation that is expected, mMU per minute.
        warm: Its warm tokens by place of the replica.
        frozen_until_ms: Until then it gets no fresh seats; 0: it is not frozen.
        members: Places of its replicas.
    """

    at: int
    first_key: int
    tenant_id: str
    load: float
    reserved: float
    planned: float
    warm: Mapping[int, int]
    frozen_until_ms: int
    members: set[int] = field(default_factory=set)

    @property
    def wanted(self) -> float:
        """Measured or reserved, whichever is more, mMU per minute."""
        return max(self.load, self.reserved)


@dataclass(slots=True)
class _Step:
    piece: Piece
    gone: int | None
    came: int | None
    gone_id: str
    cause: Cause
    load: float


class Draft:
    """Slices and replicas, and every change of who serves what.

    Args:
        servers: The replicas there are.
        pieces: The slices, without members.
        pulls: How much of a subset's load a replica draws beside its capacity, by replica id; 1 where left out.

    Attributes:
        servers: The replicas, sorted by id; everything else names them by their place here.
        capacities: Of each, above 0, mMU per minute.
        weights: Capacity times pull: in proportion to it a subset shares its load.
        seat_hashes: Of each one's seat, fixed.
        open: Places of those that take more; all of them where every one is leaving.
        pieces: The slices.
        serves: Who serves what: replicas by slices.
        sizes: Replicas of each slice.
        planned: What each one is planned to serve, mMU per minute.
        measured: The same of measured load.
        open_capacity: Of those that take more, mMU per minute.
    """

    def __init__(
        self, servers: Iterable[Server], pieces: Sequence[Piece], pulls: Mapping[str, float] | None = None
    ) -> None:
        self.servers = sorted(servers, key=lambda server: server.replica_id)
        self.capacities = np.array(
            [float(each.capacity if each.capacity > 0 else REPLICA_CAPACITY) for each in self.servers]
        )
        known = pulls or {}
        self.weights = self.capacities * np.array([known.get(each.replica_id, 1.0) for each in self.servers])
        self.seat_hashes = np.array([_hash(each.seat) for each in self.servers], dtype=np.uint64)
        staying = [at for at, server in enumerate(self.servers) if server.life is Life.OPEN]
        self.open = staying or list(range(len(self.servers)))
        self.pieces = pieces
        self.serves = np.zeros((len(self.servers), len(pieces)), dtype=bool)
        self.sizes = np.zeros(len(pieces), dtype=np.int64)
        self.planned = np.zeros(len(self.servers))
        self.measured = np.zeros(len(self.servers))
        self.open_capacity = float(self.capacities[self.open].sum())
        self._steps: list[_Step] = []
        # The same as numbers of Python, and of every slice the sum over its replicas: both are asked for all the time.
        self._weights: list[float] = self.weights.tolist()
        self._inside = [0.0] * len(pieces)
        self._open_set = frozenset(self.open)
        self._open_mask = np.zeros(len(self.servers), dtype=bool)
        self._open_mask[self.open] = True

    @property
    def mean_planned(self) -> float:
        """Planned utilisation of those that take more, 0 or more."""
        return float(self.planned[self.open].sum()) / self.open_capacity

    def outside(self, piece: Piece) -> NDArray[np.intp]:
        """Places of those that take more and do not serve a slice, rising."""
        mask = self._open_mask.copy()
        mask[list(piece.members)] = False
        return np.flatnonzero(mask)

    def takes_more(self, at: int) -> bool:
        """Whether a replica takes more."""
        return at in self._open_set

    def slices_of(self, at: int) -> list[int]:
        """The slices a replica serves, in order."""
        return [int(place) for place in np.flatnonzero(self.serves[at])]

    def seed(self, piece: Piece, members: Iterable[int]) -> None:
        """Gives a slice the replicas that it had before: no change."""
        piece.members = set(members)
        self.serves[list(piece.members), piece.at] = True
        self._count_anew(piece)

    def inside(self, piece: Piece) -> float:
        """Sum of the weights of a slice's replicas."""
        return self._inside[piece.at]

    def share(self, piece: Piece, at: int, load: float) -> float:
        """What one of a slice's replicas, or one that would join it, serves of a load of it, mMU per minute."""
        weight = self._inside[piece.at]
        if at not in piece.members:
            weight += self._weights[at]
        return load * self._weights[at] / weight

    def join(self, piece: Piece, at: int, cause: Cause, gone_id: str = "") -> None:
        """A replica comes to a slice.

        Args:
            piece: The slice.
            at: The replica's place.
            cause: Why.
            gone_id: The replica it stands in for, if that is gone altogether.
        """
        self._change(piece, None, at)
        self._steps.append(_Step(piece, None, at, gone_id, cause, self.share(piece, at, piece.load)))

    def leave(self, piece: Piece, at: int, cause: Cause) -> None:
        """A replica leaves a slice."""
        load = self.share(piece, at, piece.load)
        self._change(piece, at, None)
        self._steps.append(_Step(piece, at, None, "", cause, load))

    def swap(self, piece: Piece, gone: int, came: int, cause: Cause) -> None:
        """A replica of a slice leaves it for another."""
        load = self.share(piece, gone, piece.load)
        self._change(piece, gone, came)
        self._steps.append(_Step(piece, gone, came, "", cause, load))

    def lost(self, piece: Piece, gone_id: str, load: float, cause: Cause) -> None:
        """A replica that is gone altogether left a slice, and nobody came for it."""
        self._steps.append(_Step(piece, None, None, gone_id, cause, load))

    def touched(self) -> set[str]:
        """Replicas whose part of some slice has changed."""
        places = {at for step in self._steps for at in (*step.piece.members, step.gone) if at is not None}
        return {self.servers[at].replica_id for at in places}

    def moves(self) -> list[Move]:
        """Every change, in order."""
        return [
            Move(
                step.piece.first_key,
                step.piece.tenant_id,
                step.gone_id if step.gone is None else self.servers[step.gone].replica_id,
                "" if step.came is None else self.servers[step.came].replica_id,
                step.cause,
                round(step.load),
                0 if step.gone is None else step.piece.warm.get(step.gone, 0),
            )
            for step in self._steps
        ]

    def _change(self, piece: Piece, gone: int | None, came: int | None) -> None:
        self._count(piece, -1.0)
        if gone is not None:
            piece.members.discard(gone)
            self.serves[gone, piece.at] = False
        if came is not None:
            piece.members.add(came)
            self.serves[came, piece.at] = True
        self._count_anew(piece)

    def _count_anew(self, piece: Piece) -> None:
        """A slice has other replicas than before, and is not counted on any."""
        self.sizes[piece.at] = len(piece.members)
        self._inside[piece.at] = sum([self._weights[member] for member in piece.members])
        self._count(piece, 1.0)

    def _count(self, piece: Piece, sign: float) -> None:
        weight = self._inside[piece.at]
        for member in piece.members:
            part = sign * self._weights[member] / weight
            self.planned[member] += part * piece.planned
            self.measured[member] += part * piece.load


def _hash(seat: str) -> int:
    return int.from_bytes(hashlib.blake2b(seat.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
