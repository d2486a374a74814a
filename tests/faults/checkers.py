"""The promises as functions over what was seen: each raises AssertionError and says what broke it.

They know nothing of processes: histories, books and stored tables go in. That each of them can fail is shown in
test_checkers.py on made-up data, and in the fault tests on builds with a bug switched on (tests/faults/mutants).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from common import keys
from fairlead.errors import Reason
from tests.faults.books import RouterBooks
from tests.faults.load import CANCELLED, COMPLETED, FAILED, LOST, REFUSED, History, Record

MINIMUM_LOOKS = 2
_OVERDUE = Reason.DEADLINE_EXCEEDED.value
DIGEST_BYTES = 32
"""A snapshot begins with the SHA-256 of the rest (common/mirror.py)."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a fault may add to a quota: a rate between two moments.

    Attributes:
        from_s: Monotonic start.
        to_s: Monotonic end.
        rate_milli_mu_per_minute: How much more may be admitted in between.
    """

    from_s: float
    to_s: float
    rate_milli_mu_per_minute: float


def admitted_within(
    records: Iterable[Record],
    *,
    rate_milli_mu_per_minute: float,
    burst_milli_mu: float,
    allowances: Sequence[Allowance] = (),
) -> None:
    """Admitted work of one tenant is at most rate x window + burst, in every window.

    A request was admitted between its sending and its first token; so the requests sent after `a` whose first token
    arrived before `b` were all admitted in (a, b). Every such window is looked at.

    Args:
        records: One tenant's requests; what an unknown end cost is not counted.
        rate_milli_mu_per_minute: The quota.
        burst_milli_mu: What may be saved up.
        allowances: What a fault may add.
    """
    counted = sorted((record for record in records if record.cost_milli_mu), key=lambda record: record.first_s)
    sent = np.array([record.sent_s for record in counted])
    first = np.array([record.first_s or record.ended_s for record in counted])
    cost = np.array([record.cost_milli_mu for record in counted], dtype=float)
    for begin in sorted(sent):
        inside = sent >= begin
        ends = first[inside]
        bound = burst_milli_mu + rate_milli_mu_per_minute * (ends - begin) / 60
        for more in allowances:
            overlap = np.clip(np.minimum(ends, more.to_s) - max(begin, more.from_s), 0, None)
            bound = bound + more.rate_milli_mu_per_minute * overlap / 60
        over = np.cumsum(cost[inside]) - bound
        worst = int(np.argmax(over))
        assert over[worst] <= 0, (
            f"{over[worst]:.0f} mMU over the bound of {bound[worst]:.0f} within {ends[worst] - begin:.2f} s"
        )


def used_at_least(
    records: Iterable[Record], *, from_s: float, to_s: float, rate_milli_mu_per_minute: float, share: float
) -> None:
    """A tenant that wants more than its quota gets this share of it between two moments.

    Args:
        records: Its requests.
        from_s: Monotonic start.
        to_s: Monotonic end.
        rate_milli_mu_per_minute: The quota.
        share: 0 to 1.
    """
    used = sum(record.cost_milli_mu for record in records if from_s <= record.ended_s <= to_s)
    quota = rate_milli_mu_per_minute * (to_s - from_s) / 60
    assert used >= share * quota, f"{used} mMU of {quota:.0f} used in {to_s - from_s:.1f} s"


def never_refused(records: Iterable[Record], *, lost_max: int = 0) -> None:
    """Every request of a tenant within its quota succeeds.

    Args:
        records: Its requests.
        lost_max: How many may be lost because the router they were on was killed or cut off.
    """
    ended = Counter((record.outcome, record.reason) for record in records)
    assert ended[COMPLETED, ""] > 0, "no request was sent"
    bad = {how: count for how, count in ended.items() if how[0] not in (COMPLETED, CANCELLED, LOST)}
    lost = sum(count for (outcome, _), count in ended.items() if outcome == LOST)
    assert not bad, f"of {sum(ended.values())} requests within the quota ended otherwise: {bad}"
    assert lost <= lost_max, f"{lost} requests were lost"


def books_agree(history: History, books: Mapping[str, RouterBooks]) -> None:
    """What routers received is what they admitted, refused and cancelled, and what their clients have on record.

    Args:
        history: All requests that were sent in a stretch of time.
        books: Of every router, for the same stretch, taken when nothing is in flight.
    """
    by_router: dict[str, list[Record]] = {name: [] for name in books}
    for record in history.records:
        if record.router in by_router:
            by_router[record.router].append(record)
    for name, book in books.items():
        _one_book_agrees(name, by_router[name], book)


def _one_book_agrees(name: str, records: Sequence[Record], book: RouterBooks) -> None:
    assert book.in_flight == 0, f"{name}: {book.in_flight} in flight"
    ended = sum(book.finished.values())
    assert book.received == ended, f"{name} received {book.received} and finished {ended}"
    lost = sum(record.outcome == LOST for record in records)
    assert len(records) - lost <= book.received <= len(records), (
        f"{name} received {book.received}, its clients sent {len(records)}, of which {lost} were lost"
    )
    server: Counter[tuple[str, str]] = Counter()
    for (_, outcome, reason), count in book.finished.items():
        # Whether an error came before or after admission is the router's to say: clients know the reason.
        server[
            "error" if outcome in (REFUSED, FAILED) else outcome, reason if outcome in (REFUSED, FAILED) else ""
        ] += count
    client = Counter(
        ("error", record.reason) if record.outcome in (REFUSED, FAILED) else (record.outcome, "") for record in records
    )
    # A cancellation that came too late is complete at the router, or over its deadline, and cancelled at the client.
    late = server[COMPLETED, ""] - client[COMPLETED, ""]
    overdue = server["error", _OVERDUE] - client["error", _OVERDUE]
    assert late >= 0, f"{name} completed {server[COMPLETED, '']}, clients saw {client[COMPLETED, '']}"
    assert overdue >= 0, f"{name} ended {server['error', _OVERDUE]} at their deadline, clients saw more"
    for how in {how for how in (*server, *client) if how[0] == "error" and how[1] != _OVERDUE}:
        assert 0 <= server[how] - client[how] <= lost, (
            f"{name}: {how[1]} {server[how]} times, clients say {client[how]}"
        )
    cancelled = server[CANCELLED, ""] + late + overdue - client[CANCELLED, ""]
    assert 0 <= cancelled <= lost, f"{name}: {cancelled} more completed or cancelled than clients know of"


def nothing_held(books: Mapping[str, RouterBooks]) -> None:
    """With no request in flight, no quota is held.

    Args:
        books: Of every router, taken when nothing is in flight.
    """
    for name, book in books.items():
        held = sum(book.held_milli_mu.values())
        assert book.in_flight == 0, f"{name}: {book.in_flight} in flight"
        assert (book.open_holds, held) == (0, 0), f"{name} holds {held} mMU for {book.open_holds} requests that ended"


def settled_agrees(history: History, books: Mapping[str, RouterBooks], *, tenant: str) -> None:
    """What routers charged is what clients were told; an answer whose end nobody was told of costs at most its price.

    Args:
        history: All requests of a stretch of time.
        books: Of every router, for the same stretch.
        tenant: Whose.
    """
    records = [record for record in history.of(tenant) if record.router in books]
    told = sum(record.cost_milli_mu for record in records)
    dearest = max((record.cost_milli_mu for record in records), default=0)
    untold = dearest * sum(record.outcome in (CANCELLED, LOST) for record in records)
    charged = sum(book.settled_milli_mu[tenant] for book in books.values())
    assert told <= charged <= told + untold, f"clients were told {told} mMU, routers charged {charged}"


def usage_holds(history: History, router: str, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """What a router told its clients that it charged them is in the usage, whatever became of the router.

    Args:
        history: All requests of a stretch of time.
        router: Its name.
        before: What was stored of its usage before, milli-MU by tenant.
        after: The same afterwards.
    """
    told: Counter[str] = Counter()
    for record in history.records:
        if record.router == router:
            told[record.tenant] += record.cost_milli_mu
    assert told, f"nobody asked {router}"
    for tenant, cost in told.items():
        stored = after.get(tenant, 0) - before.get(tenant, 0)
        assert stored >= cost, f"{router} told {tenant} {cost} mMU, its usage holds {stored}"


@dataclass(frozen=True, slots=True)
class Write:
    """One change of a key a leader writes, as a watch saw it.

    Attributes:
        key: The key.
        epoch: The writing leader's epoch; 0 for a deletion.
        number: Of the table within the epoch.
    """

    key: str
    epoch: int
    number: int = 0


def epochs_never_go_back(writes: Iterable[Write]) -> None:
    """Once a newer leader has written a key, an older one's write never takes its place, and its numbers grow.

    Args:
        writes: As a reader saw them.
    """
    by_key: dict[str, tuple[int, int]] = {}
    for write in writes:
        if not write.epoch:
            continue
        before, version = by_key.get(write.key, (0, 0)), (write.epoch, write.number)
        assert version >= before, f"{write.key} went from (epoch, number) {before} to {version}"
        by_key[write.key] = version


def tables_stay(writes: Iterable[Write], living: Iterable[str]) -> None:
    """The lease tables of routers that live are never deleted: the next leader must know of them.

    Args:
        writes: Of the lease tables.
        living: Names of the routers that lived all the time.
    """
    prefixes = tuple(keys.LEASES + name for name in living)
    gone = [write.key for write in writes if not write.epoch and write.key.startswith(prefixes)]
    assert not gone, f"deleted, and its router lives: {', '.join(sorted(set(gone)))}"


def refills_within(looks: Sequence[Mapping[str, int]], *, limit_milli_mu_per_minute: int) -> None:
    """What all routers refill a tenant's buckets with makes up no more than its quota.

    Routers cannot be looked at in one instant, and a share that moves is seen twice or not at all; so what counts of a
    router is what it had at two looks in a row.

    Args:
        looks: The refill in force by router, one mapping per look; a router that could not be looked at is missing.
        limit_milli_mu_per_minute: The quota, and what a fault may add.
    """
    assert len(looks) >= MINIMUM_LOOKS, "the routers were not looked at"
    for first, second in pairwise(looks):
        steady = {name: min(rate, second.get(name, 0)) for name, rate in first.items()}
        total = sum(steady.values())
        assert total <= limit_milli_mu_per_minute, f"{total} of {limit_milli_mu_per_minute} mMU/min in force: {steady}"


def same_admission(before_milli_mu_per_s: float, after_milli_mu_per_s: float, *, part: float) -> None:
    """Two stretches of the same load admitted the same, up to a part.

    Args:
        before_milli_mu_per_s: Admitted before the fault.
        after_milli_mu_per_s: Admitted during it.
        part: Largest difference, as a part of the first.
    """
    difference = abs(after_milli_mu_per_s - before_milli_mu_per_s) / before_milli_mu_per_s
    assert difference <= part, (
        f"admitted {before_milli_mu_per_s:.2f} mMU/s before and {after_milli_mu_per_s:.2f} during: {difference:.1%}"
    )


def snapshots_whole(folder: Path) -> None:
    """Every snapshot in a router's folder is whole: it carries its own checksum in front.

    Args:
        folder: The router's state_dir.
    """
    paths = sorted(folder.glob("*.snapshot"))
    assert paths, f"no snapshot in {folder}"
    for path in paths:
        content = path.read_bytes()
        digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        assert body, f"{path.name} is empty or cut off"
        assert hashlib.sha256(body).digest() == digest, f"{path.name} is damaged"
