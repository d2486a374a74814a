"""One router: admission, replica choice, retries and settlement by the product's cores, driven in virtual time.

What `data_plane/router` does around a gRPC stream happens here around a `Flight`: the same calls on the same cores in
the same order. One thing is coarser: whether a stream has outrun its estimate is looked at when its replica counts its
tokens, a few times a second, and at its end, not at every token.
"""

from __future__ import annotations

from random import Random
from typing import Final

from common.shard_map import ShardMap
from data_plane.router.core import pricing
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.batch_gate import BatchGate, full_until_ns, may_return, may_wait
from data_plane.router.core.demand import Demand
from data_plane.router.core.fleet import Fleet, Link, Room
from data_plane.router.core.holds import BucketKey, Hold, Holds, Refused
from data_plane.router.core.loads import Report
from data_plane.router.core.pricing import Pricing
from data_plane.router.core.retry import (
    RetryBudget,
    casts_doubt,
    may_have_started,
    may_try_again,
    reason_given_up,
)
from data_plane.router.lease_desk import LeaseDesk
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import QuotaExceededError, Reason
from model_units.length import OutputLengthEstimator, next_covered_tokens
from model_units.text import BytesPerToken
from simulation.expiry import Expiry
from simulation.flight import Flight
from simulation.kernel import NS_PER_S
from simulation.routing import Chosen, Found, Routing, TooLate
from simulation.surroundings import Surroundings
from simulation.waiting import WaitingBatch

BYTES_PER_TOKEN_START: Final = 4.0
"""What a model's configuration says before anything was learned; the platform's default."""

FULL_RETRY_S: Final = 1.0
"""When a full replica says to come back. Source: engines/agent/dispatcher.py."""

_SWEEP_S: Final = 1.0
_EXPIRY_LOOK_S: Final = 0.1
# A stream that broke is opened again after this; then nobody listens at a dead replica's address.
_RECONNECT_NS: Final = NS_PER_S // 10


class Router:
    """A router process.

    Args:
        router_id: Its name.
        surroundings: The rest of the world.
        policy: How it picks replicas, by name.
        policy_random: The policy's random stream.
        random: Its own.

    Attributes:
        router_id: Its name.
        fleet: What it knows of the replicas.
        holds: Its buckets.
        demand: What was asked of it.
        desk: Which leases it applies.
        batch: Batch requests that wait for quota or a replica.
    """

    def __init__(
        self, router_id: str, surroundings: Surroundings, policy: str, policy_random: Random, random: Random
    ) -> None:
        self.router_id = router_id
        self.fleet = Fleet()
        self.holds = Holds()
        self.demand = Demand()
        self.desk = LeaseDesk(self.holds, surroundings.loop, router_id=router_id, incarnation_id=router_id)
        gate = BatchGate(self.holds, self._room)
        self.batch = WaitingBatch(
            surroundings.loop, self.holds, gate, admitted=self._admitted, refused=self._turned_away
        )
        self._around = surroundings
        self._loop = surroundings.loop
        self._routing = Routing(surroundings.loop, self.fleet, policy, policy_random, self._found)
        self._random = random
        self._pricing = Pricing(OutputLengthEstimator(), BytesPerToken())
        self._budgets: dict[str, RetryBudget] = {}
        self._deadlines = Expiry()
        self._patience = Expiry()
        self._loop.after(random.uniform(0.0, _SWEEP_S), self._sweep)
        self._loop.after(random.uniform(0.0, _EXPIRY_LOOK_S), self._expire)

    @property
    def open_requests(self) -> int:
        """Requests that were received and have not ended."""
        return len(self._deadlines)

    # --- a request's way

    def receive(self, flight: Flight) -> None:
        """A request arrives: it is priced, holds its price or is refused, and goes to a replica."""
        now_ns = self._loop.now_ns
        tenant, book = flight.tenant, flight.tenant.book
        flight.arrived_ns = now_ns
        book.received += 1
        book.times["received", self._around.bucket_of()] += 1
        self._deadlines.add(flight, tenant.deadline_ns)
        if tenant.patience_ns:
            self._patience.add(flight, tenant.patience_ns)
        flight.price = self._pricing.estimate(
            self._around.profiles[tenant.model_id],
            tenant_id=tenant.id,
            model_id=tenant.model_id,
            prompt_bytes=flight.prompt_bytes,
            messages=0,
            max_tokens=flight.max_tokens,
            runs_to_max=False,
            bytes_per_token_start=BYTES_PER_TOKEN_START,
        )
        amount = flight.price.cost.total_milli_mu
        self.demand.wanted(tenant.bucket, amount, now_ns)
        if tenant.batch and may_wait(self.holds.view(tenant.bucket, now_ns), amount):
            self.batch.enter(flight)
            return
        answer = self.holds.hold(tenant.bucket, amount, now_ns)
        quota = self.holds.view(tenant.bucket, now_ns)
        if isinstance(answer, Refused) or 2 * quota.level_milli_mu < quota.burst_milli_mu:
            self.demand.short(tenant.bucket, now_ns)
        if isinstance(answer, Refused):
            self._turned_away(flight, answer.refusal.value, answer.retry_after_s)
        else:
            self._admitted(flight, answer)

    def first_token(self, flight: Flight) -> None:
        """A request's first token has come."""
        now_ns = self._loop.now_ns
        book = flight.tenant.book
        flight.first_ns = now_ns
        self._routing.started(flight.dispatch)
        if flight.tenant.batch and flight.replica is not None:
            self.fleet.served(flight.replica.replica_id, flight.dispatch.sent_ns)
        book.ttft_s.append((now_ns - flight.arrived_ns) / NS_PER_S)
        book.ttft_at_s.append(flight.arrived_ns / NS_PER_S)
        book.input_tokens += flight.input_tokens
        book.cached_tokens += flight.cached
        if flight.tenant.patience_ns:
            self._patience.discard(flight, flight.tenant.patience_ns)

    def outran(self, flight: Flight) -> None:
        """A stream has delivered more than its hold stands for: it holds more."""
        assert flight.hold is not None
        while flight.covered_tokens < flight.delivered:
            flight.covered_tokens = next_covered_tokens(flight.covered_tokens + 1, flight.max_tokens)
        tenant = flight.tenant
        profile = self._around.profiles[tenant.model_id]
        covered = pricing.settled(profile, flight.price.input_tokens, flight.covered_tokens, 0)
        more = covered.total_milli_mu - flight.hold.amount_milli_mu
        if more > 0:
            self.holds.extend(flight.hold, more, self._loop.now_ns)
            self.demand.wanted(tenant.bucket, more, self._loop.now_ns)

    def finished(self, flight: Flight) -> None:
        """A request's answer has come to its end."""
        tenant, now_ns = flight.tenant, self._loop.now_ns
        self._routing.ended(flight.dispatch)
        if flight.delivered > flight.covered_tokens:
            self.outran(flight)
        self._pricing.observe(
            self._around.profiles[tenant.model_id],
            tenant_id=tenant.id,
            model_id=tenant.model_id,
            prompt_bytes=flight.prompt_bytes,
            messages=0,
            input_tokens=flight.input_tokens,
            output_tokens=flight.output_tokens,
            runs_to_max=False,
            bytes_per_token_start=BYTES_PER_TOKEN_START,
        )
        if flight.output_tokens > 1:
            tenant.book.tpot_s.append((now_ns - flight.first_ns) / NS_PER_S / (flight.output_tokens - 1))
        self._settle(flight, flight.input_tokens)
        self._end(flight, Outcome.COMPLETED, "")

    def failed(self, flight: Flight, reason: Reason) -> None:
        """An attempt has failed: another replica tries, or the request fails."""
        now_ns = self._loop.now_ns
        replica = flight.replica
        assert replica is not None
        self._routing.ended(flight.dispatch)
        if casts_doubt(reason):
            self.fleet.failed(replica.replica_id, now_ns)
        if reason is Reason.QUEUE_FULL:
            self.fleet.filled(replica.replica_id, full_until_ns(now_ns, FULL_RETRY_S, self._random.random()))
        flight.excluded = (*flight.excluded, replica.replica_id)
        flight.started_attempts += may_have_started(reason)
        if may_try_again(
            reason,
            resumable=not flight.delivered,
            attempts=flight.round_attempts,
            started_attempts=flight.started_attempts,
            milli_mu=flight.price.cost.total_milli_mu,
            budget=self._budget(flight.tenant.model_id),
            now_ns=now_ns,
        ):
            flight.tenant.book.moved += 1
            self._send(flight, reason)
        else:
            self._give_up(flight, reason)

    def refused_by_engine(self, flight: Flight, reason: Reason) -> None:
        """The engine can never take this request: refused, nothing charged."""
        self._routing.ended(flight.dispatch)
        self._settle_delivered(flight)
        self._end(flight, Outcome.REFUSED, reason.value)

    def _admitted(self, flight: Flight, hold: Hold) -> None:
        flight.hold = hold
        flight.covered_tokens = flight.price.output_tokens
        flight.weight = self.holds.view(flight.tenant.bucket, self._loop.now_ns).quota_milli_mu_per_minute
        if not flight.returned:
            flight.tenant.book.admitted += 1
            flight.tenant.book.times["admitted", self._around.bucket_of()] += 1
        flight.round_attempts, flight.full = 0, ()
        if flight.tenant.batch:
            model_id = flight.tenant.model_id
            flight.full = tuple(self.fleet.full(model_id, self._routing.subset(flight), self._loop.now_ns))
        flight.excluded = flight.full
        self._send(flight, None)

    def _turned_away(self, flight: Flight, reason: str, retry_after_s: float | None) -> None:
        self._end(flight, Outcome.REFUSED, reason, retry_after_s=retry_after_s)

    def _send(self, flight: Flight, failure: Reason | None) -> None:
        """Looks for a replica; `failure` is why the one before did not do."""
        flight.replica, flight.failure = None, failure
        self._routing.choose(flight)

    def _found(self, flight: Flight, found: Found) -> None:
        match found:
            case Chosen(member, dispatch, prefill_milli_mu):
                flight.attempts += 1
                flight.round_attempts += 1
                flight.key = f"{flight.number}.{flight.attempts}"
                flight.dispatch, flight.prefill_milli_mu = dispatch, prefill_milli_mu
                replica_id = member.record.replica_id
                flight.replica = self._around.replicas[replica_id]
                self._note_place(flight, replica_id)
                flight.replica.accept(flight, self)
            case TooLate(retry_after_s):
                self._settle_delivered(flight)
                self._turned_away(flight, Reason.DEADLINE_TOO_SHORT.value, retry_after_s)
            case QuotaExceededError():
                self._settle_delivered(flight)
                self._turned_away(flight, found.reason.value, found.retry_after_s)
            case _:
                self._give_up(flight, Reason.QUEUE_FULL if flight.full else flight.failure)

    def _freed(self, flight: Flight) -> None:
        if flight.replica is not None:
            member = self.fleet.get(flight.replica.replica_id)
            if member is not None:
                self._routing.freed(member)

    def _note_place(self, flight: Flight, replica_id: str) -> None:
        book = flight.tenant.book
        book.dispatched[replica_id] += 1
        newest = self._around.newest.get(flight.tenant.model_id)
        if newest is not None and replica_id not in newest.subset(flight.shard_key):
            book.misrouted += 1

    def _room(self, key: BucketKey) -> Room:
        return self.fleet.room(key[1], self._routing.subset_of(key), self._loop.now_ns)

    def _give_up(self, flight: Flight, failure: Reason | None) -> None:
        reason = reason_given_up(failure, delivered=bool(flight.delivered))
        left_ns = flight.deadline_ns - self._loop.now_ns
        self._settle_delivered(flight)
        if flight.tenant.batch and may_return(
            reason, delivered=bool(flight.delivered), retry_after_s=FULL_RETRY_S, left_ns=left_ns
        ):
            flight.hold, flight.replica, flight.returned = None, None, True
            self.batch.enter(flight)
            return
        self._end(flight, Outcome.FAILED, reason.value)

    # --- the end of a request

    def _settle(self, flight: Flight, input_tokens: int) -> None:
        assert flight.hold is not None
        tenant, now_ns = flight.tenant, self._loop.now_ns
        profile = self._around.profiles[tenant.model_id]
        total = pricing.settled(profile, input_tokens, flight.delivered, flight.cached).total_milli_mu
        self.holds.settle(flight.hold, total, now_ns)
        self.demand.used(tenant.bucket, total, now_ns)
        self._budget(tenant.model_id).settled(total, now_ns)
        tenant.book.settled_milli_mu += total
        tenant.book.output_tokens += flight.delivered

    def _settle_delivered(self, flight: Flight) -> None:
        """Ends the hold of a request that did not end by itself: what was delivered is charged, the rest goes back."""
        if flight.hold is None or not flight.hold.open:
            return
        if flight.delivered:
            flight.cached = 0  # without the engine's usage the router does not know of it
            self._settle(flight, flight.price.input_tokens)
        else:
            self.holds.refund(flight.hold, self._loop.now_ns)

    def _end(self, flight: Flight, outcome: Outcome, reason: str, *, retry_after_s: float | None = None) -> None:
        if flight.ended:
            raise RuntimeError(f"request {flight.number} ended twice")
        flight.ended = True
        flight.replica = None
        tenant = flight.tenant
        self._deadlines.discard(flight, tenant.deadline_ns)
        if tenant.patience_ns:
            self._patience.discard(flight, tenant.patience_ns)
        tenant.book.ended[outcome, reason] += 1
        if outcome is Outcome.REFUSED:
            tenant.book.times["refused", self._around.bucket_of()] += 1
        self._around.ended(flight, outcome, retry_after_s)

    def _expire(self, _: object) -> None:
        now_ns = self._loop.now_ns
        for flight in self._patience.expired(now_ns):
            self._abandon(flight, Outcome.CANCELLED, Reason.CANCELLED.value)
        for flight in self._deadlines.expired(now_ns):
            outcome = Outcome.FAILED if flight.hold is not None else Outcome.REFUSED
            self._abandon(flight, outcome, Reason.DEADLINE_EXCEEDED.value)
        self._loop.after(_EXPIRY_LOOK_S, self._expire)

    def _abandon(self, flight: Flight, outcome: Outcome, reason: str) -> None:
        """Ends a request from the client's side, wherever it is."""
        self.batch.leave(flight)
        self._routing.leave(flight)
        if flight.replica is not None:
            flight.replica.cancel(flight)
            self._routing.ended(flight.dispatch)
        self._settle_delivered(flight)
        self._end(flight, outcome, reason)

    # --- what it hears

    def assign(self, assignment: ShardMap) -> None:
        """The store's watch: a newer assignment."""
        self._routing.assign(assignment)

    def on_record(self, replica_id: str, record: engine_pb2.Replica | None) -> None:
        """The store's watch: a replica's record was written or vanished."""
        if record is None:
            self.fleet.delist(replica_id, self._loop.now_ns)
        else:
            self.fleet.enlist(record, self._loop.now_ns)
            self._around.replicas[replica_id].listen(self)

    def on_report(self, heard: tuple[str, Report, int]) -> None:
        """A report on a replica's load stream."""
        replica_id, report, state = heard
        now_ns = self._loop.now_ns
        self.fleet.report(replica_id, report, state, now_ns)
        member = self.fleet.get(replica_id)
        if member is not None and member.link is not Link.UP:
            self.fleet.link(replica_id, Link.UP, now_ns)

    def on_stream_lost(self, replica_id: str) -> None:
        """A replica's process has died: its stream breaks, and then nobody listens at its address."""
        self.fleet.link(replica_id, Link.SILENT, self._loop.now_ns)
        self._loop.at(self._loop.now_ns + _RECONNECT_NS, self._on_refused, replica_id)

    def _on_refused(self, replica_id: str) -> None:
        self.fleet.link(replica_id, Link.REFUSED, self._loop.now_ns)

    def _sweep(self, _: object) -> None:
        self.fleet.sweep(self._loop.now_ns)
        self._loop.after(_SWEEP_S, self._sweep)

    def _budget(self, model_id: str) -> RetryBudget:
        budget = self._budgets.get(model_id)
        if budget is None:
            budget = self._budgets[model_id] = RetryBudget(self._loop.now_ns)
        return budget
