"""From an admitted request to its answer: pick a replica, relay, and pick another while that is allowed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from common.clock import Clock
from common.logs import get_logger
from data_plane.relay.grpc import pieces
from data_plane.router.admission import Order
from data_plane.router.attempt import Attempt, Client
from data_plane.router.core.accounts import Accounts
from data_plane.router.core.batch_gate import full_until_ns
from data_plane.router.core.continuation import Replay, deterministic
from data_plane.router.core.fleet import Fleet, Member
from data_plane.router.core.loads import Report
from data_plane.router.core.quarantine import Quarantine, fingerprint
from data_plane.router.core.retry import (
    RetryBudget,
    casts_doubt,
    may_have_started,
    may_try_again,
)
from data_plane.router.engine_messages import engine_request
from data_plane.router.exchange import Receipt, Try
from data_plane.router.giving_up import given_up
from data_plane.router.routing import Chosen, NoReplicaError, Route, Routing
from data_plane.router.tables import Tables
from data_plane.router.tracing import RequestTrace, Tracing
from data_plane.router.upstream import Upstream
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FailedPreconditionError, FairleadError, QuotaExceededError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.prefix import prompt_chunks

log = get_logger(__name__)

# What is said of replicas that were left out because they had just said it themselves.
_KNOWN_FULL = QuotaExceededError("the replica's queue is full", reason=Reason.QUEUE_FULL)


@dataclass(slots=True)
class Relay:
    """One admitted request and what its attempts leave behind.

    Attributes:
        order: What to run.
        receipt: Learns the replica.
        trace: Parent of the attempts' spans.
        client: Who gets the answer.
        kept: The pieces delivered so far, where the request may be continued or repeated; None where it cannot.
        attempt: The one that runs, or None.
        route: Where it may go; None before it was found.
        lost: Replicas that were lost while they ran it, in all rounds.
        excluded: Replicas that failed it in this round.
        full: Replicas that batch need not ask in this round.
        attempts: Attempts in this round.
        started_attempts: Attempts that may have cost work, in all rounds.
        cleared: It was found not to be quarantined when it was sent; if it was before, this is its one try.
    """

    order: Order
    receipt: Receipt
    trace: RequestTrace
    client: Client
    kept: list[bytes] | None = None
    attempt: Attempt | None = None
    route: Route | None = None
    lost: list[str] = field(default_factory=list)
    excluded: set[str] = field(init=False)
    full: set[str] = field(init=False)
    attempts: int = 0
    started_attempts: int = 0
    cleared: bool = False

    @property
    def batch(self) -> bool:
        """Whether it is one that waits rather than be refused."""
        return self.order.checked.priority == pb.PRIORITY_BATCH

    def text(self) -> bytes:
        """What was delivered, of a request that is kept."""
        return b"".join(map(pieces.text_of, self.kept or ()))


class Attempts:
    """Relays requests from replicas.

    Args:
        fleet: The replicas.
        tables: Who is assigned to whom.
        routing: Chooses replicas.
        quarantine: Prompts that kill replicas.
        upstream: How a replica is reached.
        accounts: Counts retries.
        tracing: Of this process.
        clock: Monotonic time.
        router_id: This router, as replicas know it from its load streams.
        token_timeout_s: Longest silence of a replica after its first message.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        tables: Tables,
        routing: Routing,
        quarantine: Quarantine,
        upstream: Upstream,
        accounts: Accounts,
        tracing: Tracing,
        clock: Clock,
        router_id: str,
        token_timeout_s: float,
    ) -> None:
        self._fleet = fleet
        self._tables = tables
        self._routing = routing
        self._quarantine = quarantine
        self._upstream = upstream
        self._accounts = accounts
        self._tracing = tracing
        self._clock = clock
        self._router_id = router_id
        self._token_timeout_s = token_timeout_s
        self._budgets: dict[str, RetryBudget] = {}

    def settled(self, model_id: str, milli_mu: int, now_ns: int) -> None:
        """Settled work feeds the model's retry budget."""
        self._budget(model_id).settled(milli_mu, now_ns)

    def refuse_poison(self, order: Order) -> None:
        """Refuses a prompt that has cost two replicas already, before it holds anything.

        Raises:
            FailedPreconditionError: Reason REQUEST_QUARANTINED.
        """
        if not self._quarantine:
            return
        left_s = self._quarantine.refused_s(_fingerprint(order), self._clock.monotonic_ns())
        if left_s is not None:
            raise FailedPreconditionError(
                "this prompt was running on two different replicas when they were lost, so it is not tried on another"
                f" one for {left_s:.0f} s; do not repeat it, and report it to the platform's operators",
                reason=Reason.REQUEST_QUARANTINED,
                metadata={"left_s": f"{left_s:.0f}"},
            )

    async def run(self, relay: Relay) -> None:
        """Relays one request's answer from one replica after another until one has finished it.

        That is a round; batch that found no room waits and is admitted to another one.

        Raises:
            UnavailableError: No replica, or none that finished it: NO_REPLICA, QUEUE_FULL,
                REPLICA_LOST or STREAM_BROKEN.
            FailedPreconditionError: Another request with this prompt is the one try after a refusal; reason
                REQUEST_QUARANTINED.
            FairleadError: What the replica answered, or that no replica can answer in time.
        """
        failure: FairleadError | None = None
        order = relay.order
        relay.attempts, relay.excluded, relay.full = 0, set(), set()
        if relay.route is None:
            relay.route = self._routing.route(order, relay.receipt)
        if relay.batch:
            model_id = order.bucket[1]
            subset = self._tables.subset_of(model_id, order.tenant_id)
            relay.full = self._fleet.full(model_id, subset, self._clock.monotonic_ns())
        while True:
            chosen = await self._choose(relay, relay.route, failure)
            try:
                await self._attempt(relay, relay.route, chosen)
                if self._quarantine:
                    self._quarantine.answered(_fingerprint(order))
                return
            except (UnavailableError, QuotaExceededError) as error:
                failure = error
            self._after_failure(relay, chosen.member, failure)

    async def _choose(self, relay: Relay, route: Route, failure: FairleadError | None) -> Chosen:
        excluded = set(relay.excluded) if relay.receipt.output_tokens else relay.excluded | relay.full
        if relay.lost:
            excluded |= self._quarantine.elsewhere(relay.lost, self._routing.open_to(route, excluded))
        try:
            chosen = await self._routing.choose(route, excluded, may_wait=not relay.attempts and not relay.lost)
        except NoReplicaError:
            raise given_up(
                relay.order, relay.receipt, relay.receipt.output_tokens, _KNOWN_FULL if relay.full else failure
            ) from failure
        if not relay.cleared:
            try:
                self._try_once(relay)
            except FailedPreconditionError:
                self._routing.ended(chosen)
                raise
        member, receipt = chosen.member, relay.receipt
        replica_id = receipt.replica_id = member.load.replica_id
        receipt.engine = member.engine
        receipt.tried(Try(chosen.pick, self._clock.monotonic_ns()))
        for lost_id in relay.lost:
            self._quarantine.tried_again(lost_id, replica_id)
        relay.attempts += 1
        return chosen

    def _try_once(self, relay: Relay) -> None:
        """Spends the one try after a refusal, now that the prompt really goes to a replica."""
        if self._quarantine:
            self.refuse_poison(relay.order)
            self._quarantine.try_once(_fingerprint(relay.order), self._clock.monotonic_ns())
        relay.cleared = True

    async def _attempt(self, relay: Relay, route: Route, chosen: Chosen) -> None:
        receipt, record = relay.receipt, chosen.member.record
        span, metadata = self._tracing.attempt(relay.trace, receipt.replica_id, receipt.attempts)
        failure: BaseException | None = None
        attempt = relay.attempt = Attempt(
            relay.client,
            _Watch(self, relay, chosen),
            token_timeout_s=self._token_timeout_s,
            replay=Replay(relay.text().decode(errors="replace"), receipt.output_tokens)
            if receipt.output_tokens
            else None,
            kept=relay.kept,
        )
        try:
            running = self._upstream.start(
                record,
                engine_request(route, chosen, self._router_id),
                deadline_ns=relay.order.deadline_ns,
                metadata=metadata,
                receiver=attempt,
            )
            await attempt.run(running)
        except BaseException as error:
            failure = error
            receipt.tries[-1].failure_reason = _failure_reason(error)
            raise
        finally:
            relay.attempt = None
            self._routing.ended(chosen)
            if span is not None:
                self._tracing.attempt_ended(span, failure)

    def began(self, relay: Relay, chosen: Chosen) -> None:
        """The first message of an attempt came."""
        this = relay.receipt.tries[-1]
        self._routing.started(chosen)
        this.first_token_ns = self._clock.monotonic_ns()
        if relay.batch:
            self._fleet.served(chosen.member.record.replica_id, this.start_ns)

    def reported(self, load: engine_pb2.LoadReport) -> None:
        """A replica says how loaded it is."""
        member = self._fleet.report(load.replica_id, Report.of(load), load.state, self._clock.monotonic_ns())
        if member is not None:
            self._routing.freed(member)

    def _after_failure(self, relay: Relay, member: Member, error: FairleadError) -> None:
        """Decides whether another replica may try; returns if so.

        Raises:
            UnavailableError: No.
        """
        now_ns = self._clock.monotonic_ns()
        order, replica_id = relay.order, member.record.replica_id
        if casts_doubt(error.reason):
            self._fleet.failed(replica_id, now_ns)
        if error.reason is Reason.QUEUE_FULL:
            self._fleet.filled(replica_id, full_until_ns(now_ns, error.retry_after_s, random.random()))
        poison = False
        if error.reason is Reason.REPLICA_LOST:
            relay.lost.append(replica_id)
            poison = self._quarantine.lost(_fingerprint(order), replica_id, now_ns)
            self._accounts.quarantined[order.model.model_id] += poison
        relay.excluded.add(replica_id)
        relay.started_attempts += may_have_started(error.reason)
        allowed = not poison and may_try_again(
            error.reason,
            resumable=not relay.receipt.output_tokens or deterministic(order.request),
            attempts=relay.attempts,
            started_attempts=relay.started_attempts,
            milli_mu=order.price.cost.total_milli_mu,
            budget=self._budget(order.model.model_id),
            now_ns=now_ns,
        )
        log.warning(
            "attempt failed",
            request_id=relay.receipt.request_id,
            replica_id=replica_id,
            attempt=relay.receipt.attempts,
            reason=error.reason.value,
            error=error.message,
            output_tokens=relay.receipt.output_tokens,
            retried=allowed,
        )
        if not allowed:
            raise given_up(order, relay.receipt, relay.receipt.output_tokens, error)
        self._accounts.retries[order.model.model_id, error.reason.value] += 1

    def _budget(self, model_id: str) -> RetryBudget:
        budget = self._budgets.get(model_id)
        if budget is None:
            budget = self._budgets[model_id] = RetryBudget(self._clock.monotonic_ns())
        return budget


@dataclass(slots=True)
class _Watch:
    """See Watcher: one attempt, and whom it concerns."""

    attempts: Attempts
    relay: Relay
    chosen: Chosen

    def started(self) -> None:
        self.attempts.began(self.relay, self.chosen)

    def reported(self, load: engine_pb2.LoadReport) -> None:
        self.attempts.reported(load)


def _replay(relay: Relay) -> Replay | None:
    """What the client has of earlier attempts; text that is no UTF-8 is no reason to break off."""
    delivered_tokens = relay.receipt.output_tokens
    return Replay(relay.text().decode(errors="replace"), delivered_tokens) if delivered_tokens else None


def _fingerprint(order: Order) -> bytes:
    return fingerprint(order.tenant_id, order.model.model_id, prompt_chunks(order.request))


def _failure_reason(error: BaseException) -> str:
    if isinstance(error, FairleadError):
        return error.reason.value
    left = isinstance(error, asyncio.CancelledError | GeneratorExit)
    return (Reason.CANCELLED if left else Reason.INTERNAL).value
