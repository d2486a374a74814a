"""What a replica remembers of one router's tickets: which were used, and what the router has not acknowledged yet.

Time is the router's own monotonic clock, as far as it can be known here: the router says it now and then, and in
between the replica's clock goes on. What is said is old by its way through the network, so the replica is behind by
that much and never ahead. Wall clocks play no part, so none can be wrong.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from dataclasses import dataclass
from typing import Final

from common.tickets import TICKET_LIFE_S_MAX

TICKETS_MAX: Final = 50_000
"""Most tickets of one router that are remembered: used ones until they expire, and others until acknowledged."""

_LIFE_NS_MAX: Final = int(TICKET_LIFE_S_MAX * 1e9)


class RouterClock:
    """A router's clock, seen from here."""

    __slots__ = ("_latest_ns", "_offset_ns", "_sample_ns")

    def __init__(self) -> None:
        self._sample_ns: int | None = None
        self._offset_ns = 0
        self._latest_ns = 0

    def hear(self, router_ns: int, own_ns: int) -> None:
        """The router said its time.

        The better one of the last two samples counts: one may have been on its way for long, and older ones would hide
        that the clocks drift.

        Args:
            router_ns: What it said.
            own_ns: The replica's clock when that arrived.
        """
        sample = router_ns - own_ns
        self._offset_ns = sample if self._sample_ns is None else max(sample, self._sample_ns)
        self._sample_ns = sample

    def now_ns(self, own_ns: int) -> int:
        """The router's time; never less than what was answered before.

        Args:
            own_ns: The replica's clock now.
        """
        self._latest_ns = max(self._latest_ns, own_ns + self._offset_ns)
        return self._latest_ns


class Verdict(enum.Enum):
    """Whether a ticket may be used now."""

    GOOD = "good"
    EXPIRED = "expired"
    USED = "used"
    FULL = "full"


class End(enum.Enum):
    """How a ticket ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNUSED = "unused"


@dataclass(slots=True)
class TicketState:
    """What became of one ticket so far.

    Attributes:
        number: Its name.
        output_tokens: Handed to the client.
        end: How it ended; None while it has not.
        finish_reason: Of the engine, as on the wire; 0 where it did not come to that.
        usage: Input, cached input and output tokens by the engine, where it counted them.
        reason: Why it failed; empty where it did not.
        first_token_ns: When the client was handed its first token, by the router's clock; 0 before.
        ended_ns: When it ended, by the same clock; 0 before.
    """

    number: int
    output_tokens: int = 0
    end: End | None = None
    finish_reason: int = 0
    usage: tuple[int, int, int] | None = None
    reason: str = ""
    first_token_ns: int = 0
    ended_ns: int = 0


class TicketRegister:
    """One router's tickets at this replica.

    Args:
        tickets_max: Most that are remembered; more are refused, never forgotten.
    """

    def __init__(self, tickets_max: int = TICKETS_MAX) -> None:
        self._tickets_max = tickets_max
        self._used: set[int] = set()
        self._expiries: list[tuple[int, int]] = []  # a heap of (when, number) of the used ones
        self._states: dict[int, TicketState] = {}  # what the router has to hear of, until it acknowledged the end
        self._urgent: dict[int, None] = {}
        self._used_now: dict[int, None] = {}
        self._moved: dict[int, None] = {}
        self._messages: deque[tuple[int, list[int]]] = deque()  # sent: (message, tickets whose end it told)
        self._message = 0

    def __len__(self) -> int:
        return max(len(self._used), len(self._states))

    @property
    def unacknowledged(self) -> int:
        """Tickets that run, or whose end the router has not acknowledged."""
        return len(self._states)

    @property
    def urgent(self) -> bool:
        """Whether the router should hear something at once."""
        return bool(self._urgent)

    def use(self, number: int, expires_ns: int, now_ns: int) -> Verdict:
        """Uses a ticket up.

        Args:
            number: Its name.
            expires_ns: When it can no longer be used.
            now_ns: The router's time now.

        Returns:
            GOOD exactly once for a number; then `state` has its state.
        """
        self._forget(now_ns)
        if expires_ns <= now_ns:
            return Verdict.EXPIRED
        if number in self._used:
            return Verdict.USED
        if len(self) >= self._tickets_max:
            return Verdict.FULL
        self._use_up(number, expires_ns)
        self._states[number] = TicketState(number)
        self._used_now[number] = None
        return Verdict.GOOD

    def take_back(self, number: int, now_ns: int) -> None:
        """The router took a ticket back: it is unused for good, unless it was used already.

        Args:
            number: Its name.
            now_ns: The router's time now.
        """
        self._forget(now_ns)
        if number in self._used or number in self._states:
            return
        self._use_up(number, now_ns + _LIFE_NS_MAX)
        self._states[number] = TicketState(number, end=End.UNUSED)
        self._urgent[number] = None

    def state(self, number: int) -> TicketState:
        """The state of a ticket that runs."""
        return self._states[number]

    def delivered(self, number: int, tokens: int, now_ns: int) -> None:
        """The client got more of the answer. The router hears of the first token at once, of others in time.

        Args:
            number: The ticket.
            tokens: How many, 0 or more.
            now_ns: The router's time now.
        """
        state = self._states[number]
        if tokens and not state.output_tokens:
            self._urgent[number] = None
            state.first_token_ns = now_ns
        state.output_tokens += tokens
        self._moved[number] = None

    def ended(self, number: int, end: End, now_ns: int, *, reason: str = "") -> None:
        """A ticket ended; only its first end counts.

        Args:
            number: The ticket.
            end: How.
            now_ns: The router's time now.
            reason: Why it failed.
        """
        state = self._states.get(number)
        if state is not None and state.end is None:
            state.end, state.reason, state.ended_ns = end, reason, now_ns
            self._urgent[number] = None

    def message(self, *, whole: bool) -> tuple[int, list[TicketState]]:
        """What the router should hear now. Every message tells of all tickets that were used before it.

        Args:
            whole: Every count that moved, and not only what is urgent.

        Returns:
            The message's number, and the states it tells.
        """
        numbers = {**self._used_now, **self._urgent}
        if whole:
            numbers, self._moved = {**self._moved, **numbers}, {}
        self._urgent, self._used_now = {}, {}
        self._message += 1
        states = [self._states[number] for number in numbers if number in self._states]
        ended = [state.number for state in states if state.end is not None]
        if ended:
            self._messages.append((self._message, ended))
        return self._message, states

    def acknowledge(self, message: int) -> None:
        """The router has booked everything up to a message of this stream."""
        while self._messages and self._messages[0][0] <= message:
            for number in self._messages.popleft()[1]:
                self._states.pop(number, None)

    def begin_stream(self) -> None:
        """A new stream to the router begins: messages are counted from 1, and nothing that it did not acknowledge was
        heard."""
        self._message = 0
        self._messages.clear()
        self._urgent = dict.fromkeys(self._states)
        self._used_now, self._moved = {}, {}

    def _use_up(self, number: int, expires_ns: int) -> None:
        self._used.add(number)
        heapq.heappush(self._expiries, (expires_ns, number))

    def _forget(self, now_ns: int) -> None:
        """Forgets used tickets that have expired: they are refused for that."""
        while self._expiries and self._expiries[0][0] <= now_ns:
            self._used.discard(heapq.heappop(self._expiries)[1])
