"""Placements of the sharder's core as the assignments that everybody passes on, and back."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from common.logs import get_logger
from common.shard_map import SECONDS_MAX, Generation, ShardMap
from control_plane.core.sharding.values import Cause, Move, Placement, Slice
from fairlead.errors import InvalidArgumentError
from fairlead.sharding.v1 import sharding_pb2

log = get_logger(__name__)

MOVES_MAX: Final = 64
"""Moves that an assignment tells of, as the proto says: what it changed is for people, who read the largest ones."""

_NS_PER_MS: Final = 1_000_000
_CAUSES: Final = {cause: sharding_pb2.MoveCause.Value(f"MOVE_CAUSE_{cause.name}") for cause in Cause}
_CAUSE_OF: Final = {number: cause for cause, number in _CAUSES.items()}


def to_message(model_id: str, placement: Placement, wall_ns: int) -> sharding_pb2.Assignment:
    """A placement as it is stored and handed on.

    Args:
        model_id: Its model.
        placement: From the sharder's core.
        wall_ns: When it was computed, nanoseconds since the Unix epoch; for people only.
    """
    replica_ids = sorted(placement.members())
    places = {replica_id: place for place, replica_id in enumerate(replica_ids)}
    # A replica without a seat sits on itself.
    seats = [placement.seats.get(replica_id, replica_id) for replica_id in replica_ids]
    message = sharding_pb2.Assignment(
        model_id=model_id,
        generation=placement.generation.message(),
        reason=placement.reason,
        replica_ids=replica_ids,
        seats=["" if seat == replica_id else seat for seat, replica_id in zip(seats, replica_ids, strict=True)],
        slices=[_slice_to(each, places) for each in placement.slices],
        moves=[_move_to(move) for move in placement.moves[:MOVES_MAX]],
        moved_milli_mu_per_minute=placement.moved,
    )
    message.compute_time.FromNanoseconds(wall_ns)
    return message


def from_message(message: sharding_pb2.Assignment) -> Placement | None:
    """The placement that an assignment was made from; of more than MOVES_MAX moves only those it tells of.

    Args:
        message: As stored or handed over: from anybody, so nothing about it is believed.

    Returns:
        None, and a line in the log, where it is damaged or was written before assignments had slices.
    """
    if damage := _damage(message):
        log.warning("assignment refused", model=message.model_id, number=message.generation.number, why=damage)
        return None
    replica_ids = message.replica_ids
    seats = message.seats or [""] * len(replica_ids)
    return Placement(
        generation=Generation.of(message.generation),
        slices=tuple(_slice_from(each, message) for each in message.slices),
        seats={replica_id: seat or replica_id for replica_id, seat in zip(replica_ids, seats, strict=True)},
        reason=message.reason,
        moves=tuple(_move_from(move) for move in message.moves if move.cause in _CAUSE_OF),
        moved=max(0, message.moved_milli_mu_per_minute),
    )


def from_bytes(value: bytes) -> sharding_pb2.Assignment:
    """An assignment as it lies in the store; an empty one, which nobody takes for whole, where that is not readable."""
    try:
        return sharding_pb2.Assignment.FromString(value)
    except DecodeError:
        return sharding_pb2.Assignment()


def _damage(message: sharding_pb2.Assignment) -> str:
    """What is wrong with an assignment; empty where nothing is."""
    try:
        ShardMap(message)
    except InvalidArgumentError as error:
        return error.message
    generation, replica_ids = Generation.of(message.generation), message.replica_ids
    if not generation.sound:
        return f"its generation ({generation.incarnation}, {generation.number}) is out of range"
    if not all(replica_ids) or len(set(replica_ids)) != len(replica_ids):
        return "a replica has no name or is listed twice"
    if message.seats and len(message.seats) != len(replica_ids):
        return f"it has {len(message.seats)} seats for {len(replica_ids)} replicas"
    return ""


def _slice_to(each: Slice, places: dict[str, int]) -> sharding_pb2.Slice:
    message = sharding_pb2.Slice(
        first_key=each.first_key,
        replicas=[places[replica_id] for replica_id in each.replica_ids],
        tenant_id=each.tenant_id,
        load_milli_mu_per_minute=each.load,
    )
    if each.frozen_until_ms:
        message.frozen_until.FromNanoseconds(each.frozen_until_ms * _NS_PER_MS)
    if each.shrinkable_since_ms:
        message.shrinkable_since.FromNanoseconds(each.shrinkable_since_ms * _NS_PER_MS)
    return message


def _slice_from(each: sharding_pb2.Slice, message: sharding_pb2.Assignment) -> Slice:
    return Slice(
        first_key=each.first_key,
        replica_ids=tuple(sorted({message.replica_ids[place] for place in each.replicas})),
        tenant_id=each.tenant_id,
        load=max(0, each.load_milli_mu_per_minute),
        frozen_until_ms=_milliseconds(each.frozen_until),
        shrinkable_since_ms=_milliseconds(each.shrinkable_since),
    )


def _milliseconds(time: Timestamp) -> int:
    return min(max(0, time.seconds * 1_000 + time.nanos // _NS_PER_MS), SECONDS_MAX * 1_000)


def _move_to(move: Move) -> sharding_pb2.Move:
    return sharding_pb2.Move(
        first_key=move.first_key,
        tenant_id=move.tenant_id,
        from_replica_id=move.from_replica_id,
        to_replica_id=move.to_replica_id,
        cause=_CAUSES[move.cause],
        load_milli_mu_per_minute=move.load,
        warm_tokens=move.warm_tokens,
    )


def _move_from(move: sharding_pb2.Move) -> Move:
    return Move(
        first_key=move.first_key,
        tenant_id=move.tenant_id,
        from_replica_id=move.from_replica_id,
        to_replica_id=move.to_replica_id,
        cause=_CAUSE_OF[move.cause],
        load=max(0, move.load_milli_mu_per_minute),
        warm_tokens=max(0, move.warm_tokens),
    )
