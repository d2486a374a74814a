"""A request's life: admitted, sent to a replica, relayed, settled. The same for gRPC and HTTP.

Every request ends in exactly one outcome, and its hold in exactly one settlement:

    refused    before it was sent to a replica, or by an engine that cannot take the request at all; nothing charged
    completed  with the engine's own counts, charged exactly
    failed     charged for what was delivered, refunded the rest; nothing delivered, nothing charged
    cancelled  likewise; the replica is told at once

Until the first token a failed replica is replaced unseen, within the retry budget. After it, a greedy request goes on
elsewhere from what was delivered; any other ends with STREAM_BROKEN, which says how much arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from opentelemetry.trace import Span, Tracer

from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from data_plane.router import tracing
from data_plane.router.admission import Admission, Order
from data_plane.router.attempts import Answer, Attempts, Relay
from data_plane.router.core import pricing
from data_plane.router.core.accounts import Accounts, Outcome
from data_plane.router.core.batch_gate import may_return
from data_plane.router.core.decisions import DecisionLog
from data_plane.router.core.demand import Demand
from data_plane.router.core.holds import Hold, Holds
from data_plane.router.core.idempotency import IdempotencyWindow
from data_plane.router.core.pricing import Pricing
from data_plane.router.core.usage import Counts
from data_plane.router.core.validate import is_request_id
from data_plane.router.exchange import Call, Delta, Event, Finished, Receipt
from data_plane.router.usage_desk import UsageDesk
from fairlead.errors import FairleadError, InvalidArgumentError, QuotaExceededError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.length import next_covered_tokens

log = get_logger(__name__)

# A request with a hold ends so only where the router did not want to send it to any replica.
_REFUSED_UNSENT = frozenset({Reason.DEADLINE_TOO_SHORT, Reason.QUEUE_FULL, Reason.REQUEST_QUARANTINED})

_ID_BYTES = 12
_FINGERPRINT_BYTES = 16

# A cancellation this close to the deadline is the deadline: the caller's timer and ours run side by side.
_DEADLINE_SLACK_NS = 20_000_000

# The relay ends at the deadline by itself; this is for a request that is stuck elsewhere.
_DEADLINE_GRACE_S = 0.15


@dataclass(frozen=True, slots=True)
class Books:
    """What a request's life is written into.

    Attributes:
        accounts: Outcomes and counters.
        holds: The buckets.
        demand: What was used.
        pricing: Learns from usage.
        answers: Answers by request id.
        decisions: What was decided lately, for those who ask why.
        usage: What was charged, for the platform's books.
    """

    accounts: Accounts
    holds: Holds
    demand: Demand
    pricing: Pricing
    answers: IdempotencyWindow[Answer]
    decisions: DecisionLog[Receipt]
    usage: UsageDesk


class Flow:
    """Runs requests.

    Args:
        admission: Checks, prices and holds.
        attempts: Picks replicas and relays.
        books: Where everything is written down.
        tracer: Of this process.
        clock: Monotonic time.
    """

    def __init__(self, *, admission: Admission, attempts: Attempts, books: Books, tracer: Tracer, clock: Clock) -> None:
        self.admission = admission
        self.attempts = attempts
        self.books = books
        self.tracer = tracer
        self.clock = clock

    def open(self, call: Call) -> Exchange:
        """Prepares a request; nothing happens before its events are iterated."""
        return Exchange(self, call)

    def refuse(self, error: FairleadError, authorization: str | None) -> Receipt:
        """Counts a request that could not even be read: received, and refused.

        Args:
            error: What is wrong with it.
            authorization: The authorization header's value, or None: whoever holds the key may ask about it.

        Returns:
            What there is to know of it.
        """
        now_ns = self.clock.monotonic_ns()
        receipt = Receipt(_drawn_id(), now_ns, self.clock.wall_ns())
        with contextlib.suppress(FairleadError):
            receipt.tenant_id = self.admission.authenticate(authorization).tenant_id
        receipt.end(Outcome.REFUSED, error.reason.value, now_ns, error)
        self.books.accounts.received += 1
        self.books.accounts.finish("", "", Outcome.REFUSED, error.reason.value)
        self.books.decisions.remember(receipt)
        return receipt


class Exchange:
    """One request in progress.

    Attributes:
        receipt: What is known so far; complete once `events` has ended.
    """

    def __init__(self, flow: Flow, call: Call) -> None:
        self._flow = flow
        self._call = call
        self._order: Order | None = None
        self._hold: Hold | None = None
        self._usage: pb.Usage | None = None
        self._finish_reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED
        self._deadline: asyncio.TimerHandle | None = None
        self._first_token_ns = 0
        self._covered_tokens = 0
        self._texts: list[str] | None = None
        named = call.request.request_id
        # An id that will be refused is neither repeated nor kept.
        self.receipt = Receipt(named if named and is_request_id(named) else _drawn_id())

    async def events(self) -> AsyncGenerator[Event, None]:
        """Runs the request. Iterate it inside `contextlib.aclosing`: closing it cancels the request.

        Yields:
            Pieces of the answer as they come, then one Finished.

        Raises:
            FairleadError: It was refused or failed; everything is settled by then.
        """
        flow, receipt = self._flow, self.receipt
        started_ns = receipt.arrive_ns = flow.clock.monotonic_ns()
        receipt.arrive_wall_ns = flow.clock.wall_ns()
        flow.books.accounts.received += 1
        span = tracing.start_request(flow.tracer, self._call.parent, self._call.request, receipt)
        outcome, reason = Outcome.CANCELLED, Reason.CANCELLED.value
        failure: BaseException | None = None
        try:
            async with aclosing(self._run(span, started_ns)) as events:
                async for event in events:
                    yield event
            outcome, reason = Outcome.COMPLETED, ""
        except FairleadError as error:
            failure, reason = error, error.reason.value
            outcome = self._outcome_of(error)
            if outcome is Outcome.REFUSED:
                self._log_refusal(error)
            error.metadata.setdefault("request_id", receipt.request_id)
            if receipt.output_tokens:
                error.metadata.setdefault("output_tokens", str(receipt.output_tokens))
            raise
        except (asyncio.CancelledError, GeneratorExit) as error:
            failure = error
            if self._order and flow.clock.monotonic_ns() >= self._order.deadline_ns - _DEADLINE_SLACK_NS:
                reason = Reason.DEADLINE_EXCEEDED.value
                outcome = Outcome.FAILED if self._hold else Outcome.REFUSED
            raise
        except BaseException as error:
            failure, reason = error, Reason.INTERNAL.value
            outcome = Outcome.FAILED if self._hold else Outcome.REFUSED
            raise
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            self._settle_delivered()
            receipt.end(outcome, reason, flow.clock.monotonic_ns(), failure)
            if self._order is None:
                flow.books.decisions.remember(receipt)
            flow.books.accounts.finish(receipt.tenant_id, receipt.model_id, outcome, reason)
            tracing.finish_request(span, receipt, failure, self._usage, self._finish_reason)

    def _log_refusal(self, error: FairleadError) -> None:
        """One line with what the decision was made from; never the prompt or the key."""
        receipt = self.receipt
        log.info(
            "refused",
            request_id=receipt.request_id,
            tenant=receipt.tenant_id,
            model=receipt.model_id,
            reason=error.reason.value,
            estimated_milli_mu=receipt.estimated_milli_mu,
            quota_left_milli_mu=receipt.quota_left_milli_mu,
            retry_after_s=error.retry_after_s,
        )

    def _outcome_of(self, error: FairleadError) -> Outcome:
        """Refused: before it was sent anywhere, or by an engine that found it wrong itself. Failed: the rest."""
        by_engine = isinstance(error, InvalidArgumentError) and not self.receipt.output_tokens
        unsent = not self.receipt.attempts and error.reason in _REFUSED_UNSENT
        return Outcome.FAILED if self._hold and not by_engine and not unsent else Outcome.REFUSED

    async def _run(self, span: Span, started_ns: int) -> AsyncGenerator[Event, None]:
        flow, receipt = self._flow, self.receipt
        order = self._order = flow.admission.order(self._call, receipt)
        flow.books.decisions.remember(receipt)
        self._arm_deadline(order)
        named = bool(order.request.request_id)
        if named:
            fingerprint = _fingerprint(order.request)
            answer = flow.books.answers.begin(order.tenant_id, receipt.request_id, fingerprint, started_ns)
            if answer is not None:
                receipt.replica_id, receipt.replayed = answer.replica_id, True
                receipt.output_tokens = answer.finished.usage.output_tokens
                yield Delta(answer.text, receipt.output_tokens)
                yield answer.finished
                return
        try:
            flow.attempts.refuse_poison(order)
            self._texts = [] if named else None
            relay, returned = Relay(order, receipt, span), False
            while self._usage is None:
                self._hold = await flow.admission.hold(order, receipt, returned=returned)
                self._covered_tokens = order.price.output_tokens
                try:
                    async with aclosing(flow.attempts.run(relay)) as messages:
                        async for message in messages:
                            if message.output_tokens or message.text:
                                yield self._delivered(order, message.text, message.output_tokens, started_ns)
                            if message.finish_reason:
                                yield self._finished(order, message.finish_reason, message.usage)
                except (UnavailableError, QuotaExceededError) as error:
                    self._give_back(relay, error)
                    returned = True
        finally:
            if named:
                # Harmless after `finish`; everything else may be tried again under the same id.
                flow.books.answers.abandon(order.tenant_id, receipt.request_id)

    def _give_back(self, relay: Relay, error: UnavailableError | QuotaExceededError) -> None:
        """Batch that found every replica gone or full gives its hold back, to wait and be admitted anew.

        Raises:
            FairleadError: It is not for this request to wait, or its deadline comes first.
        """
        holds, now_ns = self._flow.books.holds, self._flow.clock.monotonic_ns()
        if not relay.batch or not may_return(
            error.reason,
            delivered=bool(self.receipt.output_tokens),
            retry_after_s=error.retry_after_s,
            left_ns=relay.order.deadline_ns - now_ns,
        ):
            raise error
        assert self._hold is not None
        holds.refund(self._hold, now_ns)
        self._hold = None
        self.receipt.gave_back(holds.view(relay.order.bucket, now_ns))

    def _arm_deadline(self, order: Order) -> None:
        """Ends the task that serves this request soon after its deadline, even when it is stuck writing."""
        task = asyncio.current_task()
        assert task is not None
        left_s = (order.deadline_ns - self._flow.clock.monotonic_ns()) / NS_PER_S
        self._deadline = asyncio.get_running_loop().call_later(left_s + _DEADLINE_GRACE_S, task.cancel)

    def _delivered(self, order: Order, text: str, tokens: int, started_ns: int) -> Delta:
        receipt, books = self.receipt, self._flow.books
        if not self._first_token_ns:
            self._first_token_ns = self._flow.clock.monotonic_ns()
            books.accounts.first_token(receipt.model_id, (self._first_token_ns - started_ns) / NS_PER_S)
        receipt.output_tokens += tokens
        books.accounts.output_tokens[order.bucket] += tokens
        if self._texts is not None:
            self._texts.append(text)
        if receipt.output_tokens > self._covered_tokens:
            self._extend(order)
        return Delta(text, tokens)

    def _extend(self, order: Order) -> None:
        """Holds more for a stream that outran its estimate."""
        assert self._hold is not None
        self._covered_tokens = next_covered_tokens(self.receipt.output_tokens, order.checked.max_tokens)
        covered = pricing.settled(order.profile, order.price.input_tokens, self._covered_tokens, 0)
        more = covered.total_milli_mu - self._hold.amount_milli_mu
        if more > 0:
            now_ns = self._flow.clock.monotonic_ns()
            self._flow.books.holds.extend(self._hold, more, now_ns)
            self.receipt.held_milli_mu += more
            self._flow.books.demand.wanted(order.bucket, more, now_ns)

    def _finished(self, order: Order, finish_reason: pb.FinishReason.ValueType, counted: pb.Usage) -> Finished:
        receipt, books = self.receipt, self._flow.books
        usage = pb.Usage(
            input_tokens=counted.input_tokens or order.price.input_tokens,
            cached_input_tokens=counted.cached_input_tokens,
            output_tokens=max(counted.output_tokens, receipt.output_tokens),
        )
        self._usage, self._finish_reason = usage, finish_reason
        cost = self._settle(order, usage)
        now_ns = self._flow.clock.monotonic_ns()
        books.accounts.input_tokens[order.bucket] += usage.input_tokens
        if usage.output_tokens > 1 and self._first_token_ns:
            gap_s = (now_ns - self._first_token_ns) / NS_PER_S / (usage.output_tokens - 1)
            books.accounts.token_time(receipt.model_id, gap_s)
        if finish_reason != pb.FINISH_REASON_CANCELLED:
            self._learn(order, counted)
        finished = Finished(finish_reason, usage, cost)
        if self._texts is not None:
            text = "".join(self._texts)
            answer = Answer(text, finished, receipt.replica_id)
            books.answers.finish(order.tenant_id, receipt.request_id, answer, 2 * len(text) + 512, now_ns)
        return finished

    def _learn(self, order: Order, counted: pb.Usage) -> None:
        self._flow.books.pricing.observe(
            order.profile,
            tenant_id=order.tenant_id,
            model_id=order.model.model_id,
            prompt_bytes=order.checked.prompt_bytes,
            messages=order.checked.messages,
            input_tokens=counted.input_tokens,
            output_tokens=counted.output_tokens,
            runs_to_max=order.request.sampling.ignore_end_token,
            bytes_per_token_start=order.model.bytes_per_token,
        )

    def _settle_delivered(self) -> None:
        """Ends the hold of a request that did not end by itself: what the client got is charged, the rest goes back."""
        if self._hold is None or not self._hold.open or self._order is None:
            return
        if self.receipt.output_tokens:
            self._settle(
                self._order,
                pb.Usage(input_tokens=self._order.price.input_tokens, output_tokens=self.receipt.output_tokens),
            )
        else:
            now_ns = self._flow.clock.monotonic_ns()
            self._flow.books.holds.refund(self._hold, now_ns)
            self.receipt.quota = self._flow.books.holds.view(self._order.bucket, now_ns)

    def _settle(self, order: Order, usage: pb.Usage) -> pb.Cost:
        assert self._hold is not None
        books, receipt = self._flow.books, self.receipt
        now_ns = self._flow.clock.monotonic_ns()
        cost = pricing.settled(order.profile, usage.input_tokens, usage.output_tokens, usage.cached_input_tokens)
        total = cost.total_milli_mu
        books.holds.settle(self._hold, total, now_ns)
        books.demand.used(order.bucket, total, now_ns)
        books.accounts.settled_milli_mu[order.bucket] += total
        self._flow.attempts.settled(order.model.model_id, total, now_ns)
        receipt.usage = (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens)
        receipt.cost = cost
        books.usage.settled(order.bucket, Counts(1, *receipt.usage, cost.prefill_milli_mu, cost.decode_milli_mu))
        receipt.quota = books.holds.view(order.bucket, now_ns)
        return pb.Cost(
            estimated_milli_mu=receipt.estimated_milli_mu,
            settled_milli_mu=total,
            prefill_milli_mu=cost.prefill_milli_mu,
            decode_milli_mu=cost.decode_milli_mu,
            quota_left_milli_mu=receipt.quota_left_milli_mu,
        )


def _fingerprint(request: pb.GenerateRequest) -> bytes:
    return hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=_FINGERPRINT_BYTES).digest()


def _drawn_id() -> str:
    return secrets.token_hex(_ID_BYTES)
