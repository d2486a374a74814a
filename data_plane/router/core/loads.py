"""What the router knows of each replica's load: the last report, its own dispatches since, and the time gone by.

A router adds its own dispatches at once; without that, it would send its next ten requests to the replica that was idle
a second ago. In scores they stand for other routers' dispatches as well (`candidate.UNSEEN_WEIGHT`). A report says how
many of this router's dispatches it has seen, so what is added on top of it is exact, whatever the network did; of an
agent that does not count them, dispatches that are older than the wire counts as seen.

What a report says is two things at once: known, until an own request in it has its first token or ends; and expected,
worked off while time passes. Pending prefill is the lesser of the two, and never less than what this router itself sent
and has not seen begin (but for the largest one, which may be half done): so a stale report ages, and a replica that
reports nothing is not taken for idle.

    known       report - own of it that began + own that it has not seen
    expected    known at the report + own since, less what the capacity has done in the time
    pending     max(own that did not begin, min(known, expected))

A number that cannot be true, negative or an hour of work and more, counts as not said: of that replica the router then
knows only what it sent there, so it is neither flooded nor left alone for good.
"""

from __future__ import annotations

from math import ceil
from typing import Final, NamedTuple

from data_plane.router.core.candidate import SECONDS_PER_MINUTE, Candidate, Health, hash64
from data_plane.router.core.prefix_index import CacheChange, PrefixIndex
from fairlead.engine.v1 import engine_pb2

_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000

# What happened less than this before or after a report may or may not be in it. Too long only double-counts briefly;
# too short loses a dispatch until the next report.
DISPATCH_UNSEEN_NS: Final = 20 * _NS_PER_MS

SEQUENCE_FORGOTTEN_NS: Final = 5 * _NS_PER_S
"""After so long with older numbers only, the replica has lost count and is believed again. Source: as long as a silence
casts doubt (`fleet.REPORT_STALE_S`)."""

PREFILL_PACE: Final = 1.0
"""Prefill that waits is worked off at this share of a replica's capacity while time passes. An assumption: a busy
replica works at about its capacity."""

DECODE_PACE: Final = 0.3
"""The same for decode, which runs beside it. An assumption; the score counts decode at less than a third, so little
depends on it."""

ABSURD_MINUTES: Final = 60
"""A replica that claims more pending work than this, at its capacity, is not believed: no deadline is that long."""

REQUESTS_MAX: Final = 10_000
"""A replica that claims more requests than this is not believed. An assumption: agents let some hundreds in and keep
some hundreds waiting."""


class Report(NamedTuple):
    """A replica's own measurement. A tuple, because every answer brings one.

    Attributes:
        sequence: Grows with every report of one replica process.
        pending_prefill_milli_mu: Prefill that waits or runs.
        decode_milli_mu: Decode left of running requests.
        queued_decode_milli_mu: Decode of requests that wait in the agent.
        requests: Requests that wait or run.
        kv_used_tokens: KV cache in use.
        kv_capacity_tokens: KV cache there is; 0 where the engine does not tell.
        dispatches_seen: The highest number of this router's dispatches that has arrived; 0 for none, or from an agent
            that does not count them.
        cache: What changed in the prefix cache; None for nothing.
    """

    sequence: int
    pending_prefill_milli_mu: int
    decode_milli_mu: int
    queued_decode_milli_mu: int = 0
    requests: int = 0
    kv_used_tokens: int = 0
    kv_capacity_tokens: int = 0
    dispatches_seen: int = 0
    cache: CacheChange | None = None

    @classmethod
    def of(cls, message: engine_pb2.LoadReport) -> Report:
        """Reads the message."""
        cache = None
        if message.HasField("cache"):
            cache = CacheChange(message.cache.whole, message.cache.added, message.cache.dropped)
        values = (
            message.sequence,
            message.pending_prefill_milli_mu,
            message.decode_milli_mu,
            message.queued_decode_milli_mu,
            message.queued_requests + message.running_requests,
            message.kv_used_tokens,
            message.kv_capacity_tokens,
            message.dispatches_seen,
            cache,
        )
        return tuple.__new__(cls, values)

    def blind(self) -> Report:
        """The same of an agent that requests go past: what it says of work is about none of them, so it is not said."""
        return self._replace(
            pending_prefill_milli_mu=-1,
            decode_milli_mu=-1,
            queued_decode_milli_mu=0,
            requests=0,
            kv_used_tokens=0,
            dispatches_seen=0,
            cache=None,
        )


class Dispatch:
    """One request sent to one replica, until it ends.

    Attributes:
        load: Of the replica.
        number: Its place among this router's dispatches to that replica, from 1: `dispatch_number` on the wire.
        prefill_milli_mu: Its prompt beyond the replica's cache.
        decode_milli_mu: Its output, estimated.
        sent_ns: When it was sent.
        started_ns: When its first token came; None before.
        line: Under what `deadline.Sent` has it, (replica, tenant); None where it has not.
    """

    __slots__ = ("blocks", "decode_milli_mu", "line", "load", "number", "prefill_milli_mu", "sent_ns", "started_ns")

    def __init__(
        self, load: ReplicaLoad, number: int, prefill_milli_mu: int, decode_milli_mu: int, sent_ns: int
    ) -> None:
        self.load = load
        self.number = number
        self.prefill_milli_mu = prefill_milli_mu
        self.decode_milli_mu = decode_milli_mu
        self.sent_ns = sent_ns
        self.started_ns: int | None = None
        self.line: tuple[str, str] | None = None
        self.blocks: list[int] = []  # that are in the replica's cache by this dispatch's word alone


class ReplicaLoad(Candidate):
    """One replica's load as this router knows it. A candidate for the policies.

    What happens to it several times per request shows in what a candidate has once somebody looks: `settle` works it
    out as of the last change.

    Attributes:
        prefixes: The index that its cache is kept in; None where it keeps no prefixes.
        changed: Where it enters itself when there is something to settle; None where it settles at once.
    """

    __slots__ = (
        "_absurd",
        "_changed_ns",
        "_counted",
        "_decode_left",
        "_decode_per_ns",
        "_ended_requests",
        "_expected",
        "_expected_ns",
        "_gone_decode",
        "_gone_prefill",
        "_heard_ns",
        "_in_flight",
        "_known",
        "_largest",
        "_least",
        "_next_number",
        "_own_decode",
        "_prefill_per_ns",
        "_queued",
        "_requests",
        "_said_decode",
        "_said_prefill",
        "_said_queued",
        "_said_requests",
        "_sequence",
        "_unseen",
        "_unseen_decode",
        "_unseen_prefill",
        "_waiting",
        "changed",
        "prefixes",
    )

    def __init__(self, replica_id: str) -> None:
        super().__init__(replica_id, hash64(replica_id), Health.CLOSED, 0, 0, 0)
        self.prefixes: PrefixIndex | None = None
        self.changed: list[ReplicaLoad] | None = None
        self._changed_ns: int | None = None  # the last change, until it is settled
        # The last report.
        self._sequence = self._said_prefill = self._said_decode = self._said_queued = self._said_requests = 0
        self._heard_ns = 0
        self._next_number = 1
        self._in_flight: dict[int, Dispatch] = {}
        self._counted = False  # whether its agent counts dispatches
        self._unseen: dict[int, Dispatch] = {}  # of those in flight the ones that the report has not seen
        self._unseen_prefill = self._unseen_decode = 0
        # What the report includes and this router has seen begin or end since.
        self._gone_prefill = self._gone_decode = self._ended_requests = 0
        # Own prefill that has not begun, the largest of it (or larger), and own decode in flight.
        self._waiting = self._largest = self._own_decode = 0
        self._expected, self._expected_ns = 0.0, 0
        # What holds until something begins or ends.
        self._known = self._least = self._decode_left = self._queued = self._requests = 0

    def dispatch(
        self, prefill_milli_mu: int, decode_milli_mu: int, now_ns: int, prefix_blocks: tuple[int, ...] = ()
    ) -> Dispatch:
        """Counts a request that is being sent to this replica.

        Args:
            prefill_milli_mu: Its prompt beyond the replica's cache, mMU.
            decode_milli_mu: Its output, estimated, mMU.
            now_ns: Monotonic now.
            prefix_blocks: Names of its prompt's blocks, which will be in the replica's cache.
        """
        prefill = prefill_milli_mu if prefill_milli_mu > 0 else 0
        decode = decode_milli_mu if decode_milli_mu > 0 else 0
        number = self._next_number
        dispatch = Dispatch(self, number, prefill, decode, now_ns)
        self._next_number = number + 1
        self._in_flight[number] = self._unseen[number] = dispatch
        self._unseen_prefill += prefill
        self._unseen_decode += decode
        waiting = self._waiting
        if not waiting or prefill > self._largest:
            self._largest = prefill
        self._waiting = waiting + prefill
        self._own_decode += decode
        self.in_flight += 1
        if prefix_blocks and self.prefixes is not None:
            dispatch.blocks = self.prefixes.add(self.replica_id, prefix_blocks)
        expected, elapsed_ns = self._expected, now_ns - self._expected_ns
        if elapsed_ns > 0:
            expected -= self._prefill_per_ns * elapsed_ns
        self._expected = prefill + expected if expected > 0.0 else float(prefill)
        self._expected_ns = now_ns
        self._change(now_ns)
        return dispatch

    def started(self, dispatch: Dispatch, now_ns: int) -> None:
        """The first token came: its prefill is done. To be called after `report` where one message says both."""
        if dispatch.number not in self._in_flight or dispatch.started_ns is not None:
            return
        dispatch.started_ns = now_ns
        self._begun(dispatch, now_ns)
        self._change(now_ns)

    def ended(self, dispatch: Dispatch, now_ns: int) -> None:
        """The request left the replica, whatever became of it. To be called once, after `report` likewise."""
        if dispatch.number not in self._in_flight:
            return
        if dispatch.started_ns is None:
            self._begun(dispatch, now_ns)
            if dispatch.blocks and self.prefixes is not None:
                self.prefixes.withdraw(self.replica_id, dispatch.blocks)
        del self._in_flight[dispatch.number]
        self.in_flight -= 1
        self._own_decode -= dispatch.decode_milli_mu
        since_ns = now_ns - self._heard_ns
        if self._unseen.pop(dispatch.number, None) is not None:
            self._unseen_decode -= dispatch.decode_milli_mu
        elif since_ns >= DISPATCH_UNSEEN_NS:
            self._ended_requests += 1
            started_ns = now_ns if dispatch.started_ns is None else dispatch.started_ns
            # What of it was left at the report: all, or in proportion to the time where it was running already.
            running_ns = max(now_ns - started_ns, since_ns)
            self._gone_decode += dispatch.decode_milli_mu * since_ns // running_ns
        self._change(now_ns)

    def report(self, report: Report, now_ns: int) -> bool:
        """Takes a replica's report.

        Args:
            report: The report.
            now_ns: When it arrived.

        Returns:
            Whether it was newer than the last one. What it says of the cache counts in any case: that is said once.
        """
        sequence, prefill, decode, queued, requests, used, capacity, seen, cache = report
        late = sequence <= self._sequence and now_ns - self._heard_ns < SEQUENCE_FORGOTTEN_NS
        if self.prefixes is not None:
            if not late and capacity != self.kv_capacity_tokens:
                self.prefixes.resize(self.replica_id, capacity)
            if cache is not None:
                self.prefixes.change(self.replica_id, cache)
        if late:
            return False
        self.kv_used_tokens = used if used > 0 else 0
        self.kv_capacity_tokens = capacity if capacity > 0 else 0
        self._sequence, self._heard_ns = sequence, now_ns
        self._said_prefill, self._said_decode, self._said_queued = prefill, decode, queued
        self._said_requests = requests if 0 <= requests <= REQUESTS_MAX else 0
        self._gone_prefill = self._gone_decode = self._ended_requests = 0
        self._see(seen, now_ns)
        self._know()
        self._expected, self._expected_ns = float(self._known), now_ns
        self._change(now_ns)
        return True

    def serve(self, capacity_milli_mu_per_minute: int) -> None:
        """Sets the capacity; 0 and less counts as the definition's."""
        super().serve(capacity_milli_mu_per_minute)
        per_ns = self.capacity_milli_mu_per_minute / (SECONDS_PER_MINUTE * _NS_PER_S)
        self._prefill_per_ns, self._decode_per_ns = PREFILL_PACE * per_ns, DECODE_PACE * per_ns
        self._absurd = ABSURD_MINUTES * self.capacity_milli_mu_per_minute

    def age(self, now_ns: int) -> None:
        """Brings the candidate's load up to now: something began or ended, or time has passed."""
        pending, decode = self._known, self._decode_left
        if pending:
            expected = self._expected
            if now_ns > self._expected_ns:
                expected -= self._prefill_per_ns * (now_ns - self._expected_ns)
            if expected < pending:
                pending = ceil(expected) if expected > self._least else self._least
        if decode and now_ns > self._heard_ns:
            decode -= int(self._decode_per_ns * (now_ns - self._heard_ns))
            if decode < 0:
                decode = 0
        self.aged_ns = now_ns
        unseen = len(self._unseen)
        self.carry(pending, decode + self._unseen_decode, self._queued, self._requests, self._unseen_prefill, unseen)

    def settle(self) -> None:
        """Works out what holds until something begins or ends, as of the last change."""
        now_ns = self._changed_ns
        if now_ns is None:
            return
        self._changed_ns = None
        # A report's number, or where that cannot be true, what this router knows of it itself. This runs for every
        # request, so comparisons stand in place of calls.
        absurd = self._absurd
        self._know()
        said = self._said_decode
        if 0 <= said < absurd:
            said -= self._gone_decode
        else:
            said = self._own_decode - self._unseen_decode
        self._decode_left = said if said > 0 else 0
        said = self._said_queued
        self._queued = said if 0 <= said < absurd else 0
        requests = self._said_requests + len(self._unseen) - self._ended_requests
        self._requests = requests if requests > self.in_flight else self.in_flight
        self.age(now_ns)

    def _change(self, now_ns: int) -> None:
        """There is something to settle."""
        entered, self._changed_ns = self._changed_ns is not None, now_ns
        if self.changed is None:
            self.settle()
        elif not entered:
            self.changed.append(self)

    def _know(self) -> None:
        """Works out the prefill that is known to wait, and how much of it at least is not done by the time gone by."""
        said, unseen_prefill = self._said_prefill, self._unseen_prefill
        if 0 <= said < self._absurd:
            said -= self._gone_prefill
        else:
            said = self._waiting - unseen_prefill
        known = said + unseen_prefill if said > 0 else unseen_prefill
        least = self._waiting - self._largest
        if least < 0:
            least = 0
        self._known, self._least = known if known > least else least, least

    def _begun(self, dispatch: Dispatch, now_ns: int) -> None:
        """Its prefill no longer waits."""
        self._waiting -= dispatch.prefill_milli_mu
        if dispatch.number in self._unseen:
            self._unseen_prefill -= dispatch.prefill_milli_mu
        elif now_ns - self._heard_ns >= DISPATCH_UNSEEN_NS:
            self._gone_prefill += dispatch.prefill_milli_mu

    def _see(self, dispatches_seen: int, now_ns: int) -> None:
        """Takes off what the report now includes."""
        counted = 0 < dispatches_seen < self._next_number
        if counted and not self._counted:
            # Until now that was a guess by time.
            self._counted, self._unseen = True, dict(self._in_flight)
            self._unseen_decode, self._unseen_prefill = self._own_decode, self._waiting
        seen = []
        for number, dispatch in self._unseen.items():
            if number > dispatches_seen if counted else now_ns - dispatch.sent_ns < DISPATCH_UNSEEN_NS:
                break  # later ones were sent later
            seen.append(dispatch)
        for dispatch in seen:
            del self._unseen[dispatch.number]
            self._unseen_decode -= dispatch.decode_milli_mu
            if dispatch.started_ns is None:
                self._unseen_prefill -= dispatch.prefill_milli_mu
