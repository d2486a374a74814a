"""Tickets between a router's book and a replica's register, over streams that break at any moment.

Plan: both real cores, joined by a network that carries messages in order, delays them, and loses what is under way
when a stream breaks. Clients redeem, twice too, give back or vanish whenever they like; the clocks differ and drift.
Whatever happens, every ticket is settled once, with exactly what its client got, and nothing that was redeemed is given
back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from data_plane.router.core.tickets import OpenTicket, TicketBook
from engines.agent.core.tickets import End, RouterClock, TicketRegister, TicketState, Verdict

REPLICA = "r1"
LIFE_NS = 10_000


@dataclass
class Message:
    number: int
    as_of_ns: int
    states: list[tuple[int, int, End | None]]


@dataclass
class Said:
    now_ns: int
    acknowledged: int
    returned: list[int]


@dataclass
class Client:
    number: int
    expires_ns: int
    tokens: int = 0
    running: bool = False
    over: bool = False


@dataclass
class Settled:
    tokens: int
    used: bool


@dataclass
class Network:
    up: deque[Message] = field(default_factory=deque)
    down: deque[Said] = field(default_factory=deque)


class Tickets(RuleBasedStateMachine):
    @initialize(offset=st.integers(-(10**6), 10**6))
    def begin(self, offset: int) -> None:
        self.offset = offset  # of the replica's clock
        self.now_ns = 10**6
        self.book: TicketBook[str] = TicketBook()
        self.register, self.clock = TicketRegister(tickets_max=20), RouterClock()
        self.clients: dict[int, Client] = {}
        self.settled: dict[int, Settled] = {}
        self.network = Network()
        self.acknowledged = 0
        self.connected = False
        self.connect()

    # --- what happens between router and replica

    @rule()
    def connect(self) -> None:
        """A new stream: what was under way is lost."""
        self.network = Network()
        self.acknowledged = 0
        self.connected = True
        self.register.begin_stream()
        self.hear(Said(self.now_ns, 0, []))

    @rule()
    def router_says(self) -> None:
        self.network.down.append(Said(self.now_ns, self.acknowledged, self.book.returned(REPLICA)))

    @rule(whole=st.booleans())
    def replica_reports(self, whole: bool) -> None:
        as_of_ns = self.clock.now_ns(self.own_ns)
        number, states = self.register.message(whole=whole)
        self.network.up.append(
            Message(number, as_of_ns, [(each.number, each.output_tokens, each.end) for each in states])
        )

    @precondition(lambda self: self.network.down)
    @rule()
    def replica_hears(self) -> None:
        self.hear(self.network.down.popleft())

    @precondition(lambda self: self.network.up)
    @rule()
    def router_books(self) -> None:
        message = self.network.up.popleft()
        for number, tokens, end in message.states:
            moved = self.book.report(REPLICA, number, tokens, ended=end is not None)
            if moved is not None and end is not None:
                self.settle(moved.ticket, used=end is not End.UNUSED)
            self.acknowledged = message.number if end is not None else self.acknowledged
        for ticket in self.book.caught_up(REPLICA, message.as_of_ns):
            self.settle(ticket, used=False)

    # --- what clients do

    @rule()
    def issue(self) -> None:
        expires_ns = self.now_ns + LIFE_NS
        ticket = self.book.add(REPLICA, expires_ns, "")
        self.clients[ticket.number] = Client(ticket.number, expires_ns)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def redeem(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(list(self.clients.values())))
        verdict = self.register.use(client.number, client.expires_ns, self.clock.now_ns(self.own_ns))
        if verdict is Verdict.GOOD:
            assert not client.running, "used twice"
            assert not client.over, "used twice"
            client.running = True
        elif verdict is Verdict.EXPIRED:
            assert self.now_ns >= client.expires_ns, "the replica is never ahead of the router"

    @precondition(lambda self: any(each.running for each in self.clients.values()))
    @rule(data=st.data(), tokens=st.integers(0, 5), end=st.sampled_from([None, *list(End)[:3]]))
    def stream(self, data: st.DataObject, tokens: int, end: End | None) -> None:
        client = data.draw(st.sampled_from([each for each in self.clients.values() if each.running]))
        client.tokens += tokens
        self.register.delivered(client.number, tokens, self.now_ns)
        if end is not None:
            client.running, client.over = False, True
            self.register.ended(client.number, end, self.now_ns)
            self.register.ended(client.number, End.CANCELLED, self.now_ns)  # only the first end counts

    @precondition(lambda self: self.book.replicas())
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        numbers = [each for each in self.clients if self.book.find(REPLICA, each) is not None]
        ticket = self.book.find(REPLICA, data.draw(st.sampled_from(numbers)))
        assert ticket is not None
        ticket.returned = not ticket.redeemed

    @rule(by_ns=st.integers(1, LIFE_NS), drift=st.integers(-50, 50))
    def pass_time(self, by_ns: int, drift: int) -> None:
        self.now_ns += by_ns
        self.offset += min(0, drift)  # a replica whose clock is slow is behind, as one that heard late is

    # --- what must be true

    @invariant()
    def every_ticket_is_open_or_settled(self) -> None:
        if hasattr(self, "book"):
            open_ = {number for number in self.clients if self.book.find(REPLICA, number) is not None}
            assert len(open_) == len(self.book)
            assert open_ | self.settled.keys() == self.clients.keys()
            assert not open_ & self.settled.keys()

    def teardown(self) -> None:
        """The network heals, the clients end, time passes: everything is settled, with what was delivered."""
        if not hasattr(self, "book"):
            return
        for client in self.clients.values():
            if client.running:
                self.register.ended(client.number, End.CANCELLED, self.now_ns)
        self.connect()
        self.now_ns += 2 * LIFE_NS
        for _ in range(3):
            self.router_says()
            self.replica_hears()
            self.replica_reports(True)
            self.router_books()
            self.now_ns += 1
        assert not len(self.book)
        assert not self.register.unacknowledged
        for number, settled in self.settled.items():
            client = self.clients[number]
            assert settled.used == (client.running or client.over)
            assert settled.tokens == client.tokens

    # --- helpers

    @property
    def own_ns(self) -> int:
        return self.now_ns + self.offset

    def hear(self, said: Said) -> None:
        self.clock.hear(said.now_ns, self.own_ns)
        self.register.acknowledge(said.acknowledged)
        for number in said.returned:
            self.register.take_back(number, self.clock.now_ns(self.own_ns))

    def settle(self, ticket: OpenTicket[str], *, used: bool) -> None:
        assert ticket.number not in self.settled, "settled twice"
        self.settled[ticket.number] = Settled(ticket.output_tokens, used)


TestTickets = Tickets.TestCase
TestTickets.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_a_full_register_refuses_and_forgets_nothing() -> None:
    """At the limit a new ticket is refused; when used ones have expired and are settled there is room again."""
    register = TicketRegister(tickets_max=3)
    assert [register.use(each, 100, 0) for each in (1, 2, 3, 4)] == [Verdict.GOOD] * 3 + [Verdict.FULL]
    assert register.use(1, 100, 0) is Verdict.USED
    for number in (1, 2, 3):
        register.ended(number, End.FAILED, 150, reason="ENGINE_FAILED")
    assert register.use(4, 300, 200) is Verdict.FULL
    number, states = register.message(whole=False)
    assert states == [TicketState(each, end=End.FAILED, reason="ENGINE_FAILED", ended_ns=150) for each in (1, 2, 3)]
    register.acknowledge(number)
    assert register.use(4, 300, 200) is Verdict.GOOD


def test_a_lost_replica_settles_its_tickets_once() -> None:
    """What it reports after it was given up changes nothing."""
    book: TicketBook[str] = TicketBook()
    running, waiting, other = book.add("r1", 100, "a"), book.add("r1", 100, "b"), book.add("r2", 100, "c")
    book.report("r1", running.number, 5, ended=False)
    assert book.lost("r1") == [running, waiting]
    assert (running.redeemed, running.output_tokens, waiting.redeemed) == (True, 5, False)
    assert book.lost("r1") == []
    assert book.report("r1", running.number, 9, ended=True) is None
    assert book.report("r1", other.number, 9, ended=True) is None, "another replica's ticket"
    assert book.replicas() == ["r2"]
