"""Where batch requests wait, for quota and for a replica, instead of being refused.

First in, first out per (tenant, model); round robin between them, so that one tenant's thousand requests do not stand
in front of another's one. A line whose first cannot be let in yet is not looked at before the refill has reached it.
Two things bend the order: what was let in and found every replica full comes back to the front, behind others that
did; and what is larger than the present lease can save up lets others pass until the lease has grown.

Bounded in all and per (tenant, model), and the bound is fair: where all places are taken, a newcomer whose tenant has
fewer takes the place of the youngest request of the tenant with most. So nobody can fill the queue for others: a tenant
is turned away only while it has as many places as any other, give or take one.

Interactive requests never wait here: they overtake by construction, and batch leaves a share of every burst to them.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, Generic, TypeVar

from data_plane.router.core.crowd import Crowd
from data_plane.router.core.holds import BucketKey, BucketView, Refusal, Refused
from fairlead.errors import QuotaExceededError, Reason

T = TypeVar("T")

WAITING_MAX: Final = 10_000
WAITING_PER_TENANT_MAX: Final = 1_000
BATCH_RESERVE_SHARE: Final = 0.2
"""Share of a burst that batch leaves to interactive requests."""

_NS_PER_S: Final = 1_000_000_000
_SECONDS_PER_MINUTE: Final = 60.0

LOOK_NS_MAX: Final = _NS_PER_S // 4
"""The refill says when a line's first can be let in at the latest; what requests in flight give back may come sooner,
so a line is looked at again at least this often."""

# And not more often than there is anything to win.
_LOOK_NS_MIN: Final = _NS_PER_S // 200

# What waits is reported as wanted within half a minute: by then the line has moved.
_FULL_RETRY_S: Final = 30.0

# Leases follow what waits within two seconds. Before a line has waited for longer than that, its rate is the one of the
# time when nobody wanted anything and says nothing about how long it will take.
_RATE_KNOWN_NS: Final = 5 * _NS_PER_S


class End(enum.Enum):
    """How a ticket ended. Exactly one per ticket."""

    ADMITTED = "admitted"
    """It was let in."""
    REFUSED = "refused"
    """Its quota can never let it in."""
    DISPLACED = "displaced"
    """It had to leave for a tenant with fewer places."""
    LEFT = "left"
    """It was given up: the request was cancelled or its deadline passed."""


@dataclass(frozen=True)
class Never:
    """The answer to a hold that waiting cannot bring.

    Attributes:
        refused: Why.
    """

    refused: Refused


class Ticket(Generic[T]):
    """A place in the queue.

    Attributes:
        key: Whose bucket it waits for.
        amount_milli_mu: What it will hold.
        deadline_ns: Monotonic end of the request; not let in from then on.
        returned: It was let in before and has come back.
        granted: What the admission gave it, once it was admitted.
        refused: Why it can never be let in, once that was found.
        displaced: The ticket that had to leave for this one, for the caller to tell its owner.
        end: How it ended; None while it waits.
    """

    __slots__ = ("amount_milli_mu", "deadline_ns", "displaced", "end", "granted", "key", "refused", "returned")

    def __init__(self, key: BucketKey, amount_milli_mu: int, deadline_ns: int, returned: bool) -> None:
        self.key = key
        self.amount_milli_mu = amount_milli_mu
        self.deadline_ns = deadline_ns
        self.returned = returned
        self.granted: T | None = None
        self.refused: Refused | None = None
        self.displaced: Ticket[T] | None = None
        self.end: End | None = None


class _Line(Generic[T]):
    """What waits of one (tenant, model).

    Attributes:
        key: Whose.
        returned: Those that have come back, in that order; they are before the others.
        fresh: The others, in order of arrival.
        blocker: Whose refill the line was left alone for, or None.
        amount_milli_mu: Of all of them.
        since_ns: When the first came that found nobody waiting.
        turn: Names its entry in the agenda that counts.
    """

    __slots__ = ("amount_milli_mu", "blocker", "fresh", "key", "returned", "since_ns", "turn")

    def __init__(self, key: BucketKey, now_ns: int) -> None:
        self.key = key
        self.returned: OrderedDict[Ticket[T], None] = OrderedDict()
        self.fresh: OrderedDict[Ticket[T], None] = OrderedDict()
        self.blocker: Ticket[T] | None = None
        self.amount_milli_mu = 0
        self.since_ns = now_ns
        self.turn = -1

    def __len__(self) -> int:
        return len(self.returned) + len(self.fresh)

    def part(self, ticket: Ticket[T]) -> OrderedDict[Ticket[T], None]:
        """Where a ticket stands."""
        return self.returned if ticket.returned else self.fresh

    def walk(self) -> Iterator[Ticket[T]]:
        """Its tickets now, in order; they may end meanwhile."""
        return iter(tuple(chain(self.returned, self.fresh)))


class BatchQueue(Generic[T]):
    """Waiting batch requests of one router.

    Args:
        waiting_max: Most requests waiting in all.
        waiting_per_tenant_max: Most of one tenant and model.
    """

    def __init__(self, *, waiting_max: int = WAITING_MAX, waiting_per_tenant_max: int = WAITING_PER_TENANT_MAX) -> None:
        self._waiting_max = waiting_max
        self._per_tenant_max = waiting_per_tenant_max
        self._lines: dict[BucketKey, _Line[T]] = {}
        self._crowd: Crowd[str, Ticket[T]] = Crowd()
        # When each line is looked at next, as a heap; an entry counts while its line's turn is the entry's.
        self._agenda: list[tuple[int, int, _Line[T]]] = []
        self._turns = 0

    def __len__(self) -> int:
        return len(self._crowd)

    @property
    def next_ns(self) -> int | None:
        """When somebody may be let in next, monotonic; None while nobody waits."""
        agenda = self._agenda
        while agenda and agenda[0][2].turn != agenda[0][1]:
            heapq.heappop(agenda)
        return agenda[0][0] if agenda else None

    def enter(
        self,
        key: BucketKey,
        amount_milli_mu: int,
        *,
        deadline_ns: int,
        bucket: BucketView,
        now_ns: int,
        returned: bool = False,
    ) -> Ticket[T]:
        """Takes a place at the end of the line; where all are taken, that of somebody whose tenant has more.

        Args:
            key: Whose bucket it waits for.
            amount_milli_mu: What it will hold, 0 or more.
            deadline_ns: Monotonic end of the request.
            bucket: The bucket now.
            now_ns: Monotonic now.
            returned: It was let in before and found every replica full: its place is before those that were not, and
                a line that begins with it is not looked at at once.

        Returns:
            The place. `displaced` names who lost its own for it; its owner is told with `full`.

        Raises:
            QuotaExceededError: No place (reason QUEUE_FULL), or the quota cannot reach it before its deadline (reason
                QUOTA_USED_UP; the metadata says how long it would take).
        """
        line = self._lines.get(key)
        if line is not None:
            if len(line) >= self._per_tenant_max:
                raise full(key)
            if not returned and now_ns - line.since_ns >= _RATE_KNOWN_NS:
                _check_reachable(line, amount_milli_mu, deadline_ns - now_ns, bucket)
        ticket: Ticket[T] = Ticket(key, amount_milli_mu, deadline_ns, returned)
        if len(self) >= self._waiting_max:
            # One place fewer must leave the other tenant with no less than this one gets, or the two would go on
            # taking the place from each other.
            if self._crowd.most - 1 < self._crowd.count(key[0]) + 1:
                raise full(key)
            ticket.displaced = self._crowd.youngest_of_most()
            self._end(ticket.displaced, End.DISPLACED)
            line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(key, now_ns)
            self._plan(line, now_ns + LOOK_NS_MAX if returned else now_ns)
        line.part(ticket)[ticket] = None
        line.amount_milli_mu += amount_milli_mu
        self._crowd.add(key[0], ticket, eldest=returned)
        return ticket

    def leave(self, ticket: Ticket[T]) -> None:
        """Gives the place up. Harmless once the ticket has ended."""
        if ticket.end is None:
            line = self._lines[ticket.key]
            blocked = line.blocker is ticket
            self._end(ticket, End.LEFT)
            if blocked and len(line):
                # Whoever is next may need less.
                self._plan(line, 0)

    def admit(self, take: Callable[[BucketKey, int], T | Refused | Never | None], now_ns: int) -> list[Ticket[T]]:
        """Lets in whoever can be let in, one per line and round. Tickets whose deadline has passed leave.

        Args:
            take: Takes the hold, or says why not, at present or for ever; None where it is not the quota that is
                missing. What is TOO_SMALL a lease for one ticket is asked again for the next.
            now_ns: Monotonic now.

        Returns:
            The tickets admitted, each with what `take` gave it, and those refused, each with why; out of the queue.
        """
        ended: list[Ticket[T]] = []
        walks: dict[_Line[T], Iterator[Ticket[T]]] = {}
        while (due_ns := self.next_ns) is not None and due_ns <= now_ns:
            line = heapq.heappop(self._agenda)[2]
            line.turn, line.blocker = -1, None
            walk = walks.get(line)
            if walk is None:
                walk = walks[line] = line.walk()
            at_ns = self._look(line, walk, take, now_ns, ended)
            if len(line):
                self._plan(line, at_ns)
        return ended

    def _look(
        self,
        line: _Line[T],
        walk: Iterator[Ticket[T]],
        take: Callable[[BucketKey, int], T | Refused | Never | None],
        now_ns: int,
        ended: list[Ticket[T]],
    ) -> int:
        """Lets in the next of a line that can be; returns when to look at it again."""
        for ticket in walk:
            if ticket.deadline_ns <= now_ns:
                self._end(ticket, End.LEFT)
                continue
            answer = take(line.key, ticket.amount_milli_mu)
            if isinstance(answer, Never):
                ticket.refused = answer.refused
                self._end(ticket, End.REFUSED)
                ended.append(ticket)
            elif answer is None or isinstance(answer, Refused):
                if answer is not None and answer.refusal is Refusal.TOO_SMALL:
                    continue
                line.blocker = ticket if answer is not None else None
                return now_ns + _pause_ns(answer)
            else:
                ticket.granted = answer
                self._end(ticket, End.ADMITTED)
                ended.append(ticket)
                return now_ns
        return now_ns + LOOK_NS_MAX

    def waiting(self) -> dict[BucketKey, int]:
        """What waits, mMU by bucket."""
        return {key: line.amount_milli_mu for key, line in self._lines.items()}

    def _plan(self, line: _Line[T], at_ns: int) -> None:
        self._turns += 1
        line.turn = self._turns
        heapq.heappush(self._agenda, (at_ns, line.turn, line))

    def _end(self, ticket: Ticket[T], end: End) -> None:
        ticket.end = end
        self._crowd.remove(ticket.key[0], ticket)
        line = self._lines[ticket.key]
        del line.part(ticket)[ticket]
        line.amount_milli_mu -= ticket.amount_milli_mu
        if not len(line):
            del self._lines[ticket.key]
            line.turn = -1


def full(key: BucketKey) -> QuotaExceededError:
    """What a request is told that finds no place, or loses its own."""
    return QuotaExceededError(
        "too many batch requests wait already; send fewer at once or come back later",
        reason=Reason.QUEUE_FULL,
        retry_after_s=_FULL_RETRY_S,
        subject="/".join(key),
    )


def _pause_ns(refused: Refused | None) -> int:
    """How long a line whose first was not let in is left alone."""
    if refused is None or refused.retry_after_s is None:
        return LOOK_NS_MAX
    return max(_LOOK_NS_MIN, min(LOOK_NS_MAX, int(refused.retry_after_s * _NS_PER_S) + 1))


def _check_reachable(line: _Line[T], amount_milli_mu: int, left_ns: int, bucket: BucketView) -> None:
    """Refuses what its quota cannot reach in time even if nobody else spends any of it.

    Raises:
        QuotaExceededError: At the present rate the deadline comes first.
    """
    rate = bucket.rate_milli_mu_per_minute
    if bucket.expired or rate <= 0:
        # Until the limiter answers again nobody can tell.
        return
    needed = min(bucket.burst_milli_mu, amount_milli_mu + int(bucket.burst_milli_mu * BATCH_RESERVE_SHARE))
    lacking = line.amount_milli_mu + needed - bucket.level_milli_mu - bucket.held_milli_mu
    wait_s, left_s = lacking * _SECONDS_PER_MINUTE / rate, left_ns / _NS_PER_S
    if wait_s > left_s:
        raise QuotaExceededError(
            f"batch requests of {line.amount_milli_mu} milli-MU wait already; at {rate} per minute it takes about"
            f" {wait_s:.0f} s to reach this one, and its deadline is in {left_s:.0f} s; allow more time or come back"
            " later",
            reason=Reason.QUOTA_USED_UP,
            retry_after_s=wait_s - left_s,
            subject="/".join(line.key),
            metadata={"expected_wait_s": f"{wait_s:.1f}"},
        )
