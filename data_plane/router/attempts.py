"""From an admitted request to its answer: pick a replica, relay, and pick another while that is allowed.

Nothing here waits but for a replica with room: an attempt's end comes as a call.
"""

from __future__ import annotations

import asyncio
import random

from common.clock import Clock
from common.logs import get_logger
from data_plane.router.admission import Order
from data_plane.router.attempt import Attempt, Watcher
from data_plane.router.core.accounts import Accounts
from data_plane.router.core.batch_gate import full_until_ns
from data_plane.router.core.continuation import Replay
from data_plane.router.core.fleet import Fleet
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
from data_plane.router.relay import Relay, Requester
from data_plane.router.routing import Chosen, Found, NoReplicaError, Routing
from data_plane.router.tables import Tables
from data_plane.router.tracing import RequestTrace, Tracing
from data_plane.router.upstream import Upstream
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FailedPreconditionError, FairleadError, QuotaExceededError, Reason, UnavailableError
from model_units.prefix import prompt_chunks

log = get_logger(__name__)

# What is said of replicas that were left out because they had just said it themselves.
_KNOWN_FULL = QuotaExceededError("the replica's queue is full", reason=Reason.QUEUE_FULL)


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
        self._now_ns = clock.monotonic_ns
        self._router_id = router_id
        self._token_timeout_s = token_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None  # asking for it is a system call
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
        left_s = self._quarantine.refused_s(_fingerprint(order), self._now_ns())
        if left_s is not None:
            raise FailedPreconditionError(
                "this prompt was running on two different replicas when they were lost, so it is not tried on another"
                f" one for {left_s:.0f} s; do not repeat it, and report it to the platform's operators",
                reason=Reason.REQUEST_QUARANTINED,
                metadata={"left_s": f"{left_s:.0f}"},
            )

    def relay(
        self, order: Order, receipt: Receipt, trace: RequestTrace, client: Requester, kept: list[bytes] | None
    ) -> Relay:
        """Finds where a request may go; see Relay."""
        return Relay(order, receipt, trace, client, self._routing.route(order, receipt), kept)

    def begin(self, relay: Relay) -> None:
        """Begins a round: replicas are tried, one after another, until one has finished the request.

        Batch that found no room waits, and is admitted to another one.
        """
        relay.failure = None
        if relay.attempts:
            relay.attempts, relay.excluded = 0, set()
        if relay.batch:
            model_id = relay.order.bucket[1]
            subset = self._tables.subset_of(model_id, relay.order.tenant_id)
            relay.full = self._fleet.full(model_id, subset, self._now_ns())

    def choose(self, relay: Relay) -> Chosen | None:
        """Picks the next replica.

        Returns:
            The replica, with the request counted on it; None where the request has to wait for one with room.

        Raises:
            UnavailableError: There is none, or none that finished it: NO_REPLICA, QUEUE_FULL, REPLICA_LOST or
                STREAM_BROKEN.
            FailedPreconditionError: Another request with this prompt is the one try after a refusal; reason
                REQUEST_QUARANTINED.
            DeadlineExceededError: No replica can answer in time.
        """
        may_wait = not relay.attempts and not relay.lost
        found = self._routing.at_once(relay.route, self._left_out(relay), may_wait=may_wait)
        return None if found is None else self._found(relay, found)

    async def wait(self, relay: Relay) -> Chosen:
        """Picks a replica as soon as one has room.

        Raises:
            FairleadError: As `choose`; or too many wait already.
        """
        return self._found(relay, await self._routing.wait(relay.route, self._left_out(relay)))

    def _left_out(self, relay: Relay) -> set[str]:
        excluded = relay.excluded
        if relay.full and not relay.receipt.output_tokens:
            excluded = excluded | relay.full
        if relay.lost:
            excluded = excluded | self._quarantine.elsewhere(relay.lost, self._routing.open_to(relay.route, excluded))
        return excluded

    def _found(self, relay: Relay, found: Found) -> Chosen:
        receipt = relay.receipt
        if not isinstance(found, Chosen):
            if isinstance(found, NoReplicaError):
                why = _KNOWN_FULL if relay.full else relay.failure
                raise given_up(relay.order, receipt, receipt.output_tokens, why) from relay.failure
            raise found
        if not relay.cleared:
            try:
                self._try_once(relay)
            except FailedPreconditionError:
                self._routing.ended(found)
                raise
        member = found.member
        replica_id = receipt.replica_id = member.load.replica_id
        receipt.engine = member.engine
        receipt.tried(Try(found.pick, self._now_ns()))
        for lost_id in relay.lost:
            self._quarantine.tried_again(lost_id, replica_id)
        relay.attempts += 1
        return found

    def _try_once(self, relay: Relay) -> None:
        """Spends the one try after a refusal, now that the prompt really goes to a replica."""
        if self._quarantine:
            self.refuse_poison(relay.order)
            self._quarantine.try_once(_fingerprint(relay.order), self._now_ns())
        relay.cleared = True

    def send(self, relay: Relay, chosen: Chosen) -> None:
        """Sends the request to a replica; its requester is told of the end."""
        receipt, record = relay.receipt, chosen.member.record
        relay.chosen = chosen
        delivered_tokens = receipt.output_tokens
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        attempt = relay.attempt = Attempt(
            relay.client,
            _Watch(self, relay),
            loop=loop,
            token_timeout_s=self._token_timeout_s,
            # Text that is no UTF-8 is no reason to break off.
            replay=Replay(relay.text().decode(errors="replace"), delivered_tokens) if delivered_tokens else None,
            kept=relay.kept,
        )
        relay.span, metadata = self._tracing.attempt(relay.trace, receipt.replica_id, receipt.attempts)
        try:
            running = self._upstream.start(
                record,
                engine_request(relay.route, chosen, self._router_id),
                deadline_ns=relay.order.deadline_ns,
                metadata=metadata,
                receiver=attempt,
            )
        except Exception as error:
            self._over(relay, error)
            raise
        relay.order.raw = b""  # its bytes are on their way, and streams are many
        attempt.run(running)

    def leave(self, relay: Relay) -> None:
        """Nobody wants the answer any more: the attempt that runs is left, if one does."""
        if relay.attempt is not None:
            relay.attempt.leave()
            self._over(relay, asyncio.CancelledError())

    def ended(self, relay: Relay, failure: Exception | None) -> None:
        """An attempt is over by itself."""
        self._over(relay, failure)
        if failure is None and self._quarantine:
            self._quarantine.answered(_fingerprint(relay.order))
        relay.client.attempt_ended(failure)

    def _over(self, relay: Relay, failure: BaseException | None) -> None:
        """Takes the request off its replica and writes the attempt down."""
        chosen, relay.attempt = relay.chosen, None
        assert chosen is not None
        if failure is not None:
            relay.receipt.tries[-1].failure_reason = _failure_reason(failure)
        self._routing.ended(chosen)
        if relay.span is not None:
            self._tracing.attempt_ended(relay.span, failure)

    def began(self, relay: Relay) -> None:
        """The first message of an attempt came."""
        this, chosen = relay.receipt.tries[-1], relay.chosen
        assert chosen is not None
        self._routing.started(chosen)
        this.first_token_ns = self._now_ns()
        if relay.batch:
            self._fleet.served(chosen.member.record.replica_id, this.start_ns)

    def reported(self, load: engine_pb2.LoadReport) -> None:
        """A replica says how loaded it is."""
        member = self._fleet.report(load.replica_id, Report.of(load), load.state, self._now_ns())
        if member is not None:
            self._routing.freed(member)

    def after_failure(self, relay: Relay, error: UnavailableError | QuotaExceededError) -> None:
        """Decides whether another replica may try; returns if so.

        Raises:
            UnavailableError: No.
        """
        relay.failure = error
        now_ns = self._now_ns()
        order, replica_id = relay.order, relay.receipt.replica_id
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
            resumable=not relay.receipt.output_tokens or order.checked.greedy,
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
            budget = self._budgets[model_id] = RetryBudget(self._now_ns())
        return budget


class _Watch(Watcher):
    """See Watcher: one attempt, and whom it concerns."""

    __slots__ = ("_attempts", "_relay")

    def __init__(self, attempts: Attempts, relay: Relay) -> None:
        self._attempts = attempts
        self._relay = relay

    def started(self) -> None:
        self._attempts.began(self._relay)

    def reported(self, load: engine_pb2.LoadReport) -> None:
        self._attempts.reported(load)

    def ended(self, failure: Exception | None) -> None:
        self._attempts.ended(self._relay, failure)


def _fingerprint(order: Order) -> bytes:
    return fingerprint(order.tenant_id, order.model.model_id, prompt_chunks(order.request))


def _failure_reason(failure: BaseException) -> str:
    if isinstance(failure, FairleadError):
        return failure.reason.value
    return (Reason.CANCELLED if isinstance(failure, asyncio.CancelledError) else Reason.INTERNAL).value
