"""The decisions of a client: what to send where, when to try again, what an answer means.

No I/O and no clock: the steps (`fairlead.sdk.steps`) are carried out by a driver, time and randomness are passed in.

    core                     driver (sync or asyncio)
    Open(to A)         ->    opens the call
    Read()             ->    waits for a message
                       <-    UNAVAILABLE
    Wait(0.05)         ->    sleeps
    Open(to B)         ->    opens the call
    Read()             ->    waits for a message
                       <-    message
    Deliver(piece)     ->    hands it to the caller
    ...
    return Generation
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NoReturn

from fairlead.errors import FairleadError, InternalError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2
from fairlead.sdk.addresses import AddressBook
from fairlead.sdk.decisions import Explanation
from fairlead.sdk.explain_steps import explain
from fairlead.sdk.results import (
    Generation,
    ModelInfo,
    Piece,
    cost_from,
    finish_reason_from,
    generation_from,
    models_from,
    usage_from,
)
from fairlead.sdk.retries import RetryPolicy, retry_delay
from fairlead.sdk.steps import Deliver, Open, Read, Send, StreamSteps, UnarySteps, Wait
from fairlead.sdk.tracing import CallSpan, Tracing
from fairlead.sdk.transport import Method, Outgoing, Request, UnaryResponse
from fairlead.sdk.wording import worded_for_caller

_REASONS_OF_ONE_ROUTER = frozenset({Reason.UNSPECIFIED, Reason.NOT_READY, Reason.SHUTTING_DOWN})
"""Where UNAVAILABLE speaks of the router itself: another one can do better. NO_REPLICA is the same everywhere."""


class ClientCore:
    """Everything a client decides, for any number of calls at once.

    Args:
        book: The routers.
        api_key: The tenant's key.
        policy: How often to try again.
        tracing: Where spans go.
        now_s: Monotonic time, seconds.
        draw: A random number, 0 up to 1.
    """

    def __init__(
        self,
        book: AddressBook,
        api_key: str,
        policy: RetryPolicy,
        tracing: Tracing,
        now_s: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._book = book
        self._authorization = ("authorization", f"Bearer {api_key}")
        self._policy = policy
        self._tracing = tracing
        self._now_s = now_s
        self._draw = draw

    def generate(self, request: inference_pb2.GenerateRequest, deadline_s: float | None) -> UnarySteps[Generation]:
        """The steps of one unary request.

        Args:
            request: What to send, with a request id.
            deadline_s: Seconds for all tries together; None for no limit.
        """
        with self._tracing.call(request) as span:
            tries = self._tries(request, deadline_s, span, "Generate")
            response = yield from _unary(tries)
            if not isinstance(response, inference_pb2.GenerateResponse):
                raise TypeError(f"the transport answered Generate with {type(response).__name__}")
            generation = generation_from(response, tries.attempts)
            span.answered(generation)
            return generation

    def list_models(self, deadline_s: float | None) -> UnarySteps[tuple[ModelInfo, ...]]:
        """The steps of listing the models the tenant may use."""
        with self._tracing.call(None) as span:
            response = yield from _unary(self._tries(inference_pb2.ListModelsRequest(), deadline_s, span, "ListModels"))
            if not isinstance(response, inference_pb2.ListModelsResponse):
                raise TypeError(f"the transport answered ListModels with {type(response).__name__}")
            return models_from(response)

    def explain(self, request_id: str, deadline_s: float | None) -> UnarySteps[Explanation]:
        """The steps of explaining a request: all routers are asked, none twice.

        Args:
            request_id: The request.
            deadline_s: Seconds for each router; None for the default.
        """
        return explain(request_id, self._book.addresses, self._authorization, deadline_s)

    def stream(self, request: inference_pb2.GenerateRequest, deadline_s: float | None) -> StreamSteps:
        """The steps of one streamed request. Nothing is tried again after the first message.

        Args:
            request: What to send, with a request id.
            deadline_s: Seconds for all tries together; None for no limit.
        """
        with self._tracing.call(request) as span:
            tries = self._tries(request, deadline_s, span, "StreamGenerate")
            message: inference_pb2.StreamGenerateResponse | None
            while True:
                try:
                    yield Open(tries.next())
                    message = yield Read()
                    break
                except FairleadError as error:
                    yield Wait(tries.failed(error))
            tries.succeeded()
            if message is not None:
                span.first_token()
            folded = StreamFold(request)
            while message is not None:
                piece = folded.add(message)
                if piece is not None:
                    yield Deliver(piece)
                try:
                    message = yield Read()
                except FairleadError as error:
                    tries.broken(error)
            generation = folded.result(tries.attempts)
            span.answered(generation)
            return generation

    def _tries(self, request: Request, deadline_s: float | None, span: CallSpan, method: Method) -> Tries:
        ends_s = None if deadline_s is None else self._now_s() + deadline_s
        metadata = (self._authorization, *span.metadata)
        return Tries(
            self._book, self._policy, span, self._now_s, self._draw, Plan(method, request, metadata, deadline_s, ends_s)
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What all tries of one call have in common."""

    method: Method
    """Method of InferenceService."""
    request: Request
    """The message, the same for every try."""
    metadata: tuple[tuple[str, str], ...]
    """Authorization and trace context."""
    deadline_s: float | None
    """Seconds for all tries together, as the caller gave it."""
    ends_s: float | None
    """Monotonic time of the deadline, seconds."""


class Tries:
    """The tries of one call: counts them, picks their addresses, decides whether there is a next one."""

    def __init__(
        self,
        book: AddressBook,
        policy: RetryPolicy,
        span: CallSpan,
        now_s: Callable[[], float],
        draw: Callable[[], float],
        plan: Plan,
    ) -> None:
        self._book = book
        self._policy = policy
        self._span = span
        self._now_s = now_s
        self._draw = draw
        self._plan = plan
        self._address = ""
        self.attempts = 0
        """Tries made so far."""

    def next(self) -> Outgoing:
        """The next try, ready to be sent."""
        now_s = self._now_s()
        self._address = self._book.pick(now_s)
        self.attempts += 1
        self._span.sent_to(self._address)
        plan = self._plan
        timeout_s = None if plan.ends_s is None else max(plan.ends_s - now_s, 0.0)
        return Outgoing(self._address, plan.method, plan.request, plan.metadata, timeout_s)

    def succeeded(self) -> None:
        """The current try was answered."""
        self._book.report_success(self._address)

    def failed(self, error: FairleadError) -> float:
        """Decides what follows a failed try.

        Returns:
            Seconds to wait before the next try.

        Raises:
            FairleadError: There is none: `error`, worded for the caller.
        """
        now_s = self._now_s()
        of_this_router = isinstance(error, UnavailableError) and error.reason in _REASONS_OF_ONE_ROUTER
        if of_this_router:
            self._book.report_failure(self._address, now_s)
        delay_s = retry_delay(
            self._policy,
            error,
            attempts=self.attempts,
            elsewhere=of_this_router and self._book.has_fresh(now_s),
            left_s=None if self._plan.ends_s is None else self._plan.ends_s - now_s,
            jitter=self._draw(),
        )
        if delay_s is None:
            self.broken(error)
        self._span.retried(error, self.attempts, delay_s)
        return delay_s

    def broken(self, error: FairleadError) -> NoReturn:
        """Raises `error`, worded for the caller where it was grpcio's own and not Fairlead's."""
        worded = worded_for_caller(error, self._address, self._plan.deadline_s)
        if isinstance(self._plan.request, inference_pb2.GenerateRequest):
            worded.metadata.setdefault("request_id", self._plan.request.request_id)
        worded.metadata.setdefault("attempts", str(self.attempts))
        raise worded from None


class StreamFold:
    """Folds the messages of one stream into pieces and a result.

    Args:
        request: What was asked.
    """

    def __init__(self, request: inference_pb2.GenerateRequest) -> None:
        self._request = request
        self._texts: list[str] = []
        self._last: inference_pb2.StreamGenerateResponse | None = None
        self._replica_id = ""

    def add(self, message: inference_pb2.StreamGenerateResponse) -> Piece | None:
        """Takes the next message; returns the piece to deliver, or None where it brought neither text nor tokens."""
        self._replica_id = message.replica_id or self._replica_id
        if message.finish_reason:
            self._last = message
        if not message.text and not message.output_tokens:
            return None
        self._texts.append(message.text)
        return Piece(message.text, message.output_tokens)

    def result(self, attempts: int) -> Generation:
        """The whole answer, once the stream ended.

        Args:
            attempts: Tries it took.

        Raises:
            InternalError: The stream ended without its last message, reason STREAM_BROKEN.
        """
        if self._last is None:
            raise InternalError(
                "the stream ended before its last message, so the text may be cut short and its cost is unknown: "
                "send the request again with a new request id",
                reason=Reason.STREAM_BROKEN,
                metadata={"request_id": self._request.request_id},
            )
        return Generation(
            text="".join(self._texts),
            finish_reason=finish_reason_from(self._last.finish_reason),
            usage=usage_from(self._last.usage),
            cost=cost_from(self._last.cost),
            model=self._request.model,
            replica_id=self._replica_id,
            request_id=self._last.request_id or self._request.request_id,
            attempts=attempts,
        )


def _unary(tries: Tries) -> Generator[Send | Wait, UnaryReply, UnaryReply]:
    while True:
        try:
            response = yield Send(tries.next())
        except FairleadError as error:
            yield Wait(tries.failed(error))
        else:
            tries.succeeded()
            return response


UnaryReply = UnaryResponse | None
