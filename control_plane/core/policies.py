"""Many reservations at once: what is wrong with them, what they change, and in which order it is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from control_plane.core import check
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import (
    ConflictError,
    FailedPreconditionError,
    FairleadError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
)
from fairlead.reservation_limits import TIER_DEFAULT, WEIGHT_DEFAULT

ENTRIES_MAX = 100_000
# More are only counted. An error travels in gRPC metadata, of which a client takes 8 KiB, up to three times: as the
# status, and in base64 as its details and its blamed field; what is left over is for the names of both.
NAMED_MAX = 20
NAMED_BYTES_MAX = 1_800
# etcd counts at most 128 conditions or operations in a transaction (--max-txn-ops): a change takes two of each, for
# the reservation and its tenant, and its model takes two more.
BATCH_MAX = 60


class Key(NamedTuple):
    """Names a reservation; sorts by model then tenant."""

    model_id: str
    tenant_id: str

    def __str__(self) -> str:
        return f"{self.tenant_id} on {self.model_id}"


def key_of(reservation: admin_pb2.Reservation) -> Key:
    """The name of a reservation."""
    return Key(reservation.model_id, reservation.tenant_id)


@dataclass(slots=True)
class Refusals:
    """Everything that is wrong, collected to be said at once."""

    errors: list[FairleadError] = field(default_factory=list)

    def add(self, error: FairleadError) -> None:
        """Takes one more."""
        self.errors.append(error)

    def raise_if_any(self) -> None:
        """Raises one error that says all of them.

        Raises:
            FairleadError: Of the class and reason of what is most basically wrong: values before names, names before
                conflicts, conflicts before capacity.
        """
        if not self.errors:
            return
        order = (InvalidArgumentError, NotFoundError, ConflictError, FailedPreconditionError)
        ranked = sorted(
            self.errors, key=lambda error: next(i for i, kind in enumerate(order) if isinstance(error, kind))
        )
        first = ranked[0]
        if len(ranked) == 1:
            raise first
        named = list(_named(ranked))
        said = "; ".join(named)
        more = f"; and {len(ranked) - len(named):,} more" if len(ranked) > len(named) else ""
        raise type(first)(
            f"{len(ranked):,} problems, nothing was written: {said}{more}",
            reason=first.reason,
            metadata={**first.metadata, "problems": str(len(ranked))},
            field=first.field,
        )


def _named(errors: Sequence[FairleadError]) -> Iterator[str]:
    """The first errors, as many as are carried; always one."""
    left = NAMED_BYTES_MAX
    for number, error in enumerate(errors[:NAMED_MAX], 1):
        said = f"({number}) {error.message}"
        # A byte that is not ASCII takes three in a status.
        left -= sum(1 if byte < 0x80 else 3 for byte in said.encode()) + len("; ")
        if left < 0 and number > 1:
            return
        yield said


def checked(reservations: Sequence[admin_pb2.Reservation], refusals: Refusals) -> dict[Key, admin_pb2.Reservation]:
    """Reservations as they are to be stored, with the etags they came with.

    Args:
        reservations: As an administrator wrote them.
        refusals: Takes what is wrong; such entries are left out.

    Raises:
        InvalidArgumentError: There are too many.
    """
    if len(reservations) > ENTRIES_MAX:
        raise InvalidArgumentError(
            f"{len(reservations):,} reservations; at most {ENTRIES_MAX:,} at once, so apply them in parts",
            field="reservations",
        )
    wanted: dict[Key, admin_pb2.Reservation] = {}
    places: dict[Key, int] = {}
    for place, entry in enumerate(reservations):
        name = f"reservations[{place}]"
        try:
            stored = check.reservation(entry, name)
        except InvalidArgumentError as error:
            refusals.add(error)
            continue
        key = key_of(stored)
        if key in places:
            refusals.add(InvalidArgumentError(f"{name}: {key} is reservations[{places[key]}] already", field=name))
            continue
        places[key] = place
        stored.etag = entry.etag
        wanted[key] = stored
    return wanted


def check_parents(
    wanted: Iterable[Key], complete_model_ids: Iterable[str], tenants: Set[str], models: Set[str], refusals: Refusals
) -> None:
    """Refuses reservations of tenants and models that do not exist, each name once.

    Args:
        wanted: Reservations that are to be there.
        complete_model_ids: Models that are to have no others.
        tenants: Those that exist.
        models: Likewise.
        refusals: Takes what is wrong.
    """
    wanted = list(wanted)
    for tenant_id in sorted({key.tenant_id for key in wanted} - tenants):
        refusals.add(NotFoundError(f"there is no tenant {tenant_id!r}", reason=Reason.UNKNOWN_TENANT))
    for model_id in sorted(({key.model_id for key in wanted} | set(complete_model_ids)) - models):
        refusals.add(NotFoundError(f"there is no model {model_id!r}", reason=Reason.UNKNOWN_MODEL))


@dataclass(frozen=True, slots=True)
class Changes:
    """What becomes different, by name."""

    created: Mapping[Key, admin_pb2.Reservation]
    updated: Mapping[Key, admin_pb2.Reservation]
    deleted: Mapping[Key, admin_pb2.Reservation]

    def __len__(self) -> int:
        return len(self.created) + len(self.updated) + len(self.deleted)


def changes(
    wanted: Mapping[Key, admin_pb2.Reservation],
    stored: Mapping[Key, admin_pb2.Reservation],
    complete_model_ids: Set[str],
    refusals: Refusals,
) -> Changes:
    """Compares what is wanted with what is there.

    Args:
        wanted: From `checked`.
        stored: Everything that is there on the models in question, with etags.
        complete_model_ids: Models whose other reservations go.
        refusals: Takes stale etags. What is as it should be already has no conflict, so that a repetition converges.
    """
    created, updated = {}, {}
    for key, reservation in wanted.items():
        there = stored.get(key)
        if there is None:
            created[key] = reservation
            if reservation.etag:
                refusals.add(ConflictError(f"{key}: somebody deleted it since you read it"))
        elif not same(reservation, there):
            updated[key] = reservation
            if reservation.etag not in ("", there.etag):
                refusals.add(
                    ConflictError(
                        f"{key}: somebody changed it since you read it",
                        metadata={"etag_sent": reservation.etag[:40], "etag_now": there.etag},
                    )
                )
    deleted = {key: there for key, there in stored.items() if key.model_id in complete_model_ids and key not in wanted}
    return Changes(created, updated, deleted)


def same(one: admin_pb2.Reservation, other: admin_pb2.Reservation) -> bool:
    """Whether two reservations mean the same, whatever stands for a default in them."""
    return _meaning(one) == _meaning(other)


def _meaning(reservation: admin_pb2.Reservation) -> tuple[int, int, int, int]:
    reserved = reservation.reserved_milli_mu_per_minute
    return (
        reserved,
        max(reserved, reservation.burst_ceiling_milli_mu_per_minute),
        reservation.tier or TIER_DEFAULT,
        reservation.weight or WEIGHT_DEFAULT,
    )


def sold(reservations: Iterable[admin_pb2.Reservation]) -> dict[str, int]:
    """Sum of the reserved rates by model, milli-MU per minute."""
    sums: dict[str, int] = defaultdict(int)
    for reservation in reservations:
        sums[reservation.model_id] += reservation.reserved_milli_mu_per_minute
    return sums


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes of one model that are written in one transaction.

    Attributes:
        model_id: The model.
        puts: Reservations to write.
        deletes: Reservations to delete; either puts or deletes are empty.
        grows: Whether they raise what is sold.
    """

    model_id: str
    puts: tuple[Key, ...] = ()
    deletes: tuple[Key, ...] = ()
    grows: bool = False


def batches(change: Changes, stored: Mapping[Key, admin_pb2.Reservation]) -> Iterator[Batch]:
    """Cuts changes into transactions: first what frees capacity, then what takes it, so that no state in between sells
    more than the larger of before and after.

    Args:
        change: From `changes`.
        stored: What it was compared with.
    """
    puts = {**change.created, **change.updated}

    def raises(key: Key) -> bool:
        before = stored[key].reserved_milli_mu_per_minute if key in stored else 0
        return puts[key].reserved_milli_mu_per_minute > before

    for model_id, some in _cut(change.deleted):
        yield Batch(model_id, deletes=some)
    growing = {key for key in puts if raises(key)}
    for model_id, some in _cut(puts.keys() - growing):
        yield Batch(model_id, puts=some)
    for model_id, some in _cut(growing):
        yield Batch(model_id, puts=some, grows=True)


def _cut(names: Iterable[Key]) -> Iterator[tuple[str, tuple[Key, ...]]]:
    by_model: dict[str, list[Key]] = defaultdict(list)
    for key in sorted(names):
        by_model[key.model_id].append(key)
    for model_id, all_of_it in by_model.items():
        for start in range(0, len(all_of_it), BATCH_MAX):
            yield model_id, tuple(all_of_it[start : start + BATCH_MAX])
