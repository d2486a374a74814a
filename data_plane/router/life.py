"""A request's life: admitted, sent to a replica, relayed, settled. The same for gRPC and HTTP.

Every request ends in exactly one outcome, and its hold in exactly one settlement:

    refused    before it was sent to a replica, or by an engine that cannot take the request at all; nothing charged
    completed  with the engine's own counts, charged exactly
    failed     charged for what was delivered, refunded the rest; nothing delivered, nothing charged
    cancelled  likewise; the replica is told at once

Until the first token a failed replica is replaced unseen, within the retry budget. After it, a greedy request goes on
elsewhere from what was delivered; any other ends with STREAM_BROKEN, which says how much arrived.

Everything is a call from one step to the next; only what has to wait, for quota or for a replica with room, has a task.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from typing import Any, Final

from common.logs import get_logger
from common.rpc import as_fairlead_error
from data_plane.relay.grpc import pieces
from data_plane.router import tracing
from data_plane.router.admission import Admission, Order
from data_plane.router.attempts import Attempts
from data_plane.router.books import Answer, Books
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.batch_gate import may_return
from data_plane.router.core.holds import Hold
from data_plane.router.deadlines import Deadlines
from data_plane.router.events import NOBODY, Events
from data_plane.router.exchange import Call, Finished, Receipt, Sink
from data_plane.router.relay import Relay, Requester
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


class Exchange(Requester):
    """One request in progress.

    Args:
        call: As it came.
        receipt: Its receipt.
        admission: Checks, prices and holds.
        attempts: Picks replicas and relays.
        books: Where everything is written down.
        tracing: Of this process.
        deadlines: Of all requests.

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
        deadlines: Deadlines,
    ) -> None:
        self.receipt = receipt
        self._call = call
        self._admission = admission
        self._attempts = attempts
        self._books = books
        self._tracing = tracing
        self._deadlines = deadlines
        self._sink: Sink = NOBODY
        self._trace: RequestTrace | None = None
        self._order: Order | None = None
        self._tab: Tab | None = None
        self._relay: Relay | None = None
        self._wait: asyncio.Task[None] | None = None
        self._finished: Finished | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._claims_id = self._over = False
        self._told: asyncio.Event | None = None

    # --- from the front door

    def start(self, sink: Sink) -> None:
        """Runs the request.

        Args:
            sink: Told of the answer, and of its end exactly once unless the request is cancelled first; before this
                returns, where it is refused at once.
        """
        self._sink = sink
        receipt = self.receipt
        receipt.arrive_ns, receipt.arrive_wall_ns = self._books.now_ns(), self._books.wall_ns()
        self._books.accounts.received += 1
        self._trace = self._tracing.request(self._call.trace, self._call.request, receipt)
        try:
            self._begin(self._trace)
        except Exception as error:  # noqa: BLE001  # the boundary: a request that ends must be written down and told
            self._stopped(error)

    def cancel(self) -> None:
        """The client is gone: the replica is told, what was delivered is charged, and nobody is told any more."""
        self._sink = NOBODY
        if not self._over:
            self._cut_off()

    def resume(self) -> None:
        """The client keeps up again."""
        if self._relay is not None and self._relay.attempt is not None:
            self._relay.attempt.resume()

    async def ended(self) -> None:
        """Waits until everything is settled."""
        if not self._over:
            if self._told is None:
                self._told = asyncio.Event()
            await self._told.wait()

    def events(self) -> Events:
        """The same, pulled. Iterate it inside `contextlib.aclosing`: closing it cancels the request."""
        return Events(self)

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

    def attempt_ended(self, failure: Exception | None) -> None:
        """See Requester."""
        try:
            if failure is None:
                self._succeeded()
            elif isinstance(failure, UnavailableError | QuotaExceededError):
                assert self._relay is not None
                self._attempts.after_failure(self._relay, failure)
                self._choose()
            else:
                self._stopped(failure)
        except Exception as error:  # noqa: BLE001  # as in `start`
            self._stopped(error)

    # --- its life

    def _begin(self, trace: RequestTrace) -> None:
        receipt = self.receipt
        order = self._order = self._admission.order(self._call, receipt)
        self._books.decisions.remember(receipt)
        self._deadlines.add(self, order.deadline_ns)
        named = bool(order.request.request_id)
        if named:
            if self._replayed(order):
                self._end(Outcome.COMPLETED, "", None)
                return
            self._claims_id = True
        self._attempts.refuse_poison(order)
        kept: list[bytes] | None = [] if named or order.checked.greedy else None
        self._relay = self._attempts.relay(order, receipt, trace, self, kept)
        self._tab = Tab(self._books, order, receipt)
        self._hold(order)

    def _hold(self, order: Order, *, returned: bool = False) -> None:
        hold = self._admission.hold_at_once(order, self.receipt, returned=returned)
        if hold is None:
            self._later(self._held_later(order, returned))
        else:
            self._admitted(hold)

    async def _held_later(self, order: Order, returned: bool) -> None:
        self._admitted(await self._admission.wait(order, self.receipt, returned=returned))

    def _admitted(self, hold: Hold) -> None:
        tab, relay = self._tab, self._relay
        assert tab is not None
        assert relay is not None
        tab.open(hold)
        self._attempts.begin(relay)
        self._choose()

    def _choose(self) -> None:
        relay = self._relay
        assert relay is not None
        chosen = self._attempts.choose(relay)
        if chosen is None:
            self._later(self._chosen_later(relay))
        else:
            self._attempts.send(relay, chosen)

    async def _chosen_later(self, relay: Relay) -> None:
        self._attempts.send(relay, await self._attempts.wait(relay))

    def _later(self, wait: Coroutine[Any, Any, None]) -> None:
        """Goes on when something has been waited for."""
        self._wait = asyncio.get_running_loop().create_task(self._waited(wait))

    async def _waited(self, wait: Coroutine[Any, Any, None]) -> None:
        this = asyncio.current_task()
        try:
            await wait
        except asyncio.CancelledError:
            if not self._over:
                self._cut_off()
            raise
        except Exception as error:  # noqa: BLE001  # as in `start`
            self._stopped(error)
        finally:
            if self._wait is this:
                self._wait = None

    def _succeeded(self) -> None:
        if self._claims_id:
            relay, order, receipt = self._relay, self._order, self.receipt
            assert relay is not None
            assert order is not None
            assert self._finished is not None
            text = relay.text()
            answer = Answer(text, self._finished, receipt.replica_id)
            now_ns = self._books.now_ns()
            self._books.answers.finish(order.tenant_id, receipt.request_id, answer, len(text) + 512, now_ns)
        self._end(Outcome.COMPLETED, "", None)

    def _stopped(self, error: Exception) -> None:
        """Something said no: batch waits again where that helps, everything else ends."""
        if not isinstance(error, FairleadError):
            outcome = Outcome.FAILED if self._held else Outcome.REFUSED
            self._end(outcome, Reason.INTERNAL.value, error, as_fairlead_error(error, "Exchange"))
        elif isinstance(error, UnavailableError | QuotaExceededError) and self._may_return(error):
            assert self._tab is not None
            assert self._order is not None
            self._tab.give_back()
            try:
                self._hold(self._order, returned=True)
            except Exception as another:  # noqa: BLE001  # as in `start`
                self._stopped(another)
        else:
            self._end(self._outcome_of(error), error.reason.value, error, error)

    def _cut_off(self) -> None:
        """It is cancelled: by its client, unless its deadline was here, or the process ends."""
        order = self._order
        if order is not None and self._books.now_ns() >= order.deadline_ns - _DEADLINE_SLACK_NS:
            self._stopped(_late())
        else:
            leaving = UnavailableError("the router is going down", reason=Reason.SHUTTING_DOWN)
            self._end(Outcome.CANCELLED, Reason.CANCELLED.value, asyncio.CancelledError(), leaving)

    def _end(
        self, outcome: Outcome, reason: str, failure: BaseException | None, told: FairleadError | None = None
    ) -> None:
        """Settles what is open, writes everything down and tells the client; once."""
        if self._over:
            return
        self._over = True
        receipt, books, order = self.receipt, self._books, self._order
        self._deadlines.remove(self)
        if self._grace is not None:
            self._grace.cancel()
        wait, self._wait = self._wait, None
        if wait is not None and wait is not asyncio.current_task():
            wait.cancel()
        if self._relay is not None:
            self._attempts.leave(self._relay)
        if self._tab is not None:
            self._tab.close()
        if self._claims_id and order is not None:
            # Harmless after `finish`; everything else may be tried again under the same id.
            books.answers.abandon(order.tenant_id, receipt.request_id)
        receipt.end(outcome, reason, self._books.now_ns(), failure)
        if order is None:
            books.decisions.remember(receipt)
        books.accounts.finish(receipt.tenant_id, receipt.model_id, outcome, reason)
        if self._trace is not None and self._trace.span is not None:
            tracing.finish_request(self._trace.span, receipt, failure, self._finished)
        # Nothing may go on pointing in a circle: what is freed at once costs a third less than what a collection finds.
        sink, self._sink, self._relay = self._sink, NOBODY, None
        if self._told is not None:
            self._told.set()
        if told is not None:
            self._fail(sink, told, outcome)
        else:
            assert self._finished is not None
            sink.on_finished(self._finished)

    def _fail(self, sink: Sink, error: FairleadError, outcome: Outcome) -> None:
        receipt = self.receipt
        if outcome is Outcome.REFUSED:
            self._log_refusal(error)
        error.metadata.setdefault("request_id", receipt.request_id)
        if receipt.output_tokens:
            error.metadata.setdefault("output_tokens", str(receipt.output_tokens))
        sink.on_failed(error)

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

    def _may_return(self, error: UnavailableError | QuotaExceededError) -> bool:
        """Whether batch that found every replica gone or full gives its hold back, to wait and be admitted anew."""
        relay = self._relay
        return (
            relay is not None
            and relay.batch
            and self._held
            and may_return(
                error.reason,
                delivered=bool(self.receipt.output_tokens),
                retry_after_s=error.retry_after_s,
                left_ns=relay.order.deadline_ns - self._books.now_ns(),
            )
        )

    def on_deadline(self) -> None:
        """See Timed. A wait, which has the same deadline, is left a moment to say so itself."""
        if self._relay is not None and self._relay.attempt is not None:
            self._relay.attempt.fail(_late())
        elif self._wait is not None:
            self._grace = asyncio.get_running_loop().call_later(_DEADLINE_GRACE_S, self._wait.cancel)


def _late() -> DeadlineExceededError:
    return DeadlineExceededError("the deadline passed before the answer was whole")


def _fingerprint(request: pb.GenerateRequest) -> bytes:
    return hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=_FINGERPRINT_BYTES).digest()
