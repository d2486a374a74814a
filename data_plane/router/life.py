"""A request's life: admitted, sent to a replica, relayed, settled. The same for gRPC and HTTP.

Every request ends in exactly one outcome, and its hold in exactly one settlement:

    refused    before it was sent to a replica, or by an engine that cannot take the request at all; nothing charged
    completed  with the engine's own counts, charged exactly
    failed     charged for what was delivered, refunded the rest; nothing delivered, nothing charged
    cancelled  likewise; the replica is told at once

Until the first token a failed replica is replaced unseen, within the retry budget. After it, a greedy request goes on
elsewhere from what was delivered; any other ends with STREAM_BROKEN, which says how much arrived.

One task carries it from wait to wait; tokens pass by it, from the attempt to the sink.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import Final

from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.rpc import as_fairlead_error
from data_plane.relay.grpc import pieces
from data_plane.router import tracing
from data_plane.router.admission import Admission, Order
from data_plane.router.attempts import Attempts, Relay
from data_plane.router.books import Answer, Books
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.batch_gate import may_return
from data_plane.router.core.continuation import deterministic
from data_plane.router.events import NOBODY, Events
from data_plane.router.exchange import Call, Event, Finished, Receipt, Sink
from data_plane.router.tab import Tab
from data_plane.router.tracing import RequestTrace, Tracing
from fairlead.errors import (
    DeadlineExceededError,
    FairleadError,
    InvalidArgumentError,
    QuotaExceededError,
    Reason,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2 as pb

log = get_logger(__name__)

# A request with a hold ends so only where the router did not want to send it to any replica.
_REFUSED_UNSENT: Final = frozenset({Reason.DEADLINE_TOO_SHORT, Reason.QUEUE_FULL, Reason.REQUEST_QUARANTINED})

_FINGERPRINT_BYTES: Final = 16

# A cancellation this close to the deadline is the deadline: the caller's timer and ours run side by side.
_DEADLINE_SLACK_NS: Final = 20_000_000

# The relay ends at the deadline by itself; this is for a request that is stuck elsewhere.
_DEADLINE_GRACE_S: Final = 0.15


class Exchange:
    """One request in progress.

    Args:
        call: As it came.
        receipt: Its receipt.
        admission: Checks, prices and holds.
        attempts: Picks replicas and relays.
        books: Where everything is written down.
        tracing: Of this process.
        clock: Monotonic time.

    Attributes:
        receipt: What is known so far; complete once the sink was told of the end.
    """

    def __init__(
        self,
        call: Call,
        receipt: Receipt,
        *,
        admission: Admission,
        attempts: Attempts,
        books: Books,
        tracing: Tracing,
        clock: Clock,
    ) -> None:
        self.receipt = receipt
        self._call = call
        self._admission = admission
        self._attempts = attempts
        self._books = books
        self._tracing = tracing
        self._clock = clock
        self._sink: Sink = NOBODY
        self._task: asyncio.Task[None] | None = None
        self._order: Order | None = None
        self._tab: Tab | None = None
        self._relay: Relay | None = None
        self._finished: Finished | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- from the front door

    def start(self, sink: Sink) -> None:
        """Runs the request.

        Args:
            sink: Told of the answer, and of its end exactly once unless the request is cancelled first.
        """
        self._sink = sink
        self._task = asyncio.get_running_loop().create_task(self._live())

    def cancel(self) -> None:
        """The client is gone: the replica is told, what was delivered is charged, and nobody is told any more."""
        self._sink = NOBODY
        if self._task is not None:
            self._task.cancel()

    def resume(self) -> None:
        """The client keeps up again."""
        if self._relay is not None and self._relay.attempt is not None:
            self._relay.attempt.resume()

    async def ended(self) -> None:
        """Waits until everything is settled."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def events(self) -> AsyncGenerator[Event, None]:
        """The same, pulled. Iterate it inside `contextlib.aclosing`: closing it cancels the request.

        Yields:
            Pieces of the answer as they come, then one Finished.

        Raises:
            FairleadError: It was refused or failed; everything is settled by then.
        """
        events = Events(self.resume)
        self.start(events)
        try:
            async for event in events:
                yield event
        finally:
            self.cancel()
            await self.ended()

    # --- from the attempts

    def deliver(self, piece: bytes, tokens: int) -> bool:
        """See Client."""
        assert self._tab is not None
        self._tab.deliver(tokens)
        return self._sink.on_piece(piece)

    def finish(self, finish_reason: pb.FinishReason.ValueType, counted: pb.Usage) -> None:
        """See Client."""
        assert self._tab is not None
        self._finished = self._tab.finish(finish_reason, counted)

    # --- its life

    async def _live(self) -> None:
        receipt, books = self.receipt, self._books
        receipt.arrive_ns, receipt.arrive_wall_ns = self._clock.monotonic_ns(), self._clock.wall_ns()
        books.accounts.received += 1
        trace = self._tracing.request(self._call.trace, self._call.request, receipt)
        outcome, reason = Outcome.COMPLETED, ""
        failure: BaseException | None = None
        told: FairleadError | None = None
        try:
            await self._run(trace)
        except FairleadError as error:
            failure = told = error
            outcome, reason = self._outcome_of(error), error.reason.value
        except asyncio.CancelledError as error:
            failure = error
            outcome, reason, told = self._cut_off()
        except Exception as error:  # noqa: BLE001  # the boundary: a request that ends must be written down and told
            failure, told = error, as_fairlead_error(error, "Exchange")
            outcome = Outcome.FAILED if self._held else Outcome.REFUSED
            reason = Reason.INTERNAL.value
        if self._timer is not None:
            self._timer.cancel()
        if self._tab is not None:
            self._tab.close()
        receipt.end(outcome, reason, self._clock.monotonic_ns(), failure)
        if self._order is None:
            books.decisions.remember(receipt)
        books.accounts.finish(receipt.tenant_id, receipt.model_id, outcome, reason)
        if trace.span is not None:
            tracing.finish_request(trace.span, receipt, failure, self._finished)
        # Nothing may go on pointing in a circle: what is freed at once costs a third less than what a collection finds.
        sink, self._sink, self._relay = self._sink, NOBODY, None
        if told is None:
            assert self._finished is not None
            sink.on_finished(self._finished)
        else:
            self._fail(sink, told, outcome)
        failure = told = None  # their tracebacks hold this frame

    def _fail(self, sink: Sink, error: FairleadError, outcome: Outcome) -> None:
        receipt = self.receipt
        if outcome is Outcome.REFUSED:
            self._log_refusal(error)
        error.metadata.setdefault("request_id", receipt.request_id)
        if receipt.output_tokens:
            error.metadata.setdefault("output_tokens", str(receipt.output_tokens))
        sink.on_failed(error)

    def _cut_off(self) -> tuple[Outcome, str, FairleadError]:
        """What a request is that was cancelled: by its client, unless its deadline was here."""
        order = self._order
        if order is not None and self._clock.monotonic_ns() >= order.deadline_ns - _DEADLINE_SLACK_NS:
            late = _late()
            return (Outcome.FAILED if self._held else Outcome.REFUSED), late.reason.value, late
        return (
            Outcome.CANCELLED,
            Reason.CANCELLED.value,
            UnavailableError("the router is going down", reason=Reason.SHUTTING_DOWN),
        )

    @property
    def _held(self) -> bool:
        return self._tab is not None and self._tab.hold is not None

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
        return Outcome.FAILED if self._held and not by_engine and not unsent else Outcome.REFUSED

    async def _run(self, trace: RequestTrace) -> None:
        receipt, answers = self.receipt, self._books.answers
        order = self._order = self._admission.order(self._call, receipt)
        self._books.decisions.remember(receipt)
        self._arm_deadline(order)
        named = bool(order.request.request_id)
        if named and self._replayed(order):
            return
        try:
            self._attempts.refuse_poison(order)
            kept: list[bytes] | None = [] if named or deterministic(order.request) else None
            relay = self._relay = Relay(order, receipt, trace, self, kept)
            tab = Tab(self._books, order, receipt)
            returned = False
            while self._finished is None:
                tab.open(await self._admission.hold(order, receipt, returned=returned))
                self._tab = tab
                try:
                    await self._attempts.run(relay)
                except (UnavailableError, QuotaExceededError) as error:
                    self._give_back(relay, tab, error)
                    returned = True
            if named:
                text = relay.text()
                answer = Answer(text, self._finished, receipt.replica_id)
                now_ns = self._clock.monotonic_ns()
                answers.finish(order.tenant_id, receipt.request_id, answer, len(text) + 512, now_ns)
        finally:
            if named:
                # Harmless after `finish`; everything else may be tried again under the same id.
                answers.abandon(order.tenant_id, receipt.request_id)

    def _replayed(self, order: Order) -> bool:
        """Answers a repeated request from the window.

        Raises:
            ConflictError: It is in flight, or another request has its id.
        """
        receipt = self.receipt
        fingerprint = _fingerprint(order.request)
        answer = self._books.answers.begin(order.tenant_id, receipt.request_id, fingerprint, receipt.arrive_ns)
        if answer is None:
            return False
        receipt.replica_id, receipt.replayed = answer.replica_id, True
        receipt.output_tokens = answer.finished.usage.output_tokens
        self._sink.on_piece(pieces.piece(answer.text, receipt.output_tokens))
        self._finished = answer.finished
        return True

    def _give_back(self, relay: Relay, tab: Tab, error: UnavailableError | QuotaExceededError) -> None:
        """Batch that found every replica gone or full gives its hold back, to wait and be admitted anew.

        Raises:
            FairleadError: It is not for this request to wait, or its deadline comes first.
        """
        if not relay.batch or not may_return(
            error.reason,
            delivered=bool(self.receipt.output_tokens),
            retry_after_s=error.retry_after_s,
            left_ns=relay.order.deadline_ns - self._clock.monotonic_ns(),
        ):
            raise error
        tab.give_back()

    def _arm_deadline(self, order: Order) -> None:
        left_s = (order.deadline_ns - self._clock.monotonic_ns()) / NS_PER_S
        self._timer = asyncio.get_running_loop().call_later(left_s, self._on_deadline)

    def _on_deadline(self) -> None:
        """Ends what the replica does for it; and soon after the request itself, wherever it is stuck."""
        if self._relay is not None and self._relay.attempt is not None:
            self._relay.attempt.fail(_late())
        assert self._task is not None
        self._timer = asyncio.get_running_loop().call_later(_DEADLINE_GRACE_S, self._task.cancel)


def _late() -> DeadlineExceededError:
    return DeadlineExceededError("the deadline passed before the answer was whole")


def _fingerprint(request: pb.GenerateRequest) -> bytes:
    return hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=_FINGERPRINT_BYTES).digest()
