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

from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2
from fairlead.sdk.addresses import AddressBook
from fairlead.sdk.decisions import Explanation
from fairlead.sdk.direct import DirectMode, read, stream_direct
from fairlead.sdk.explain_steps import explain
from fairlead.sdk.folding import StreamFold
from fairlead.sdk.results import Generation, ModelInfo, generation_from, models_from
from fairlead.sdk.retries import RetryPolicy
from fairlead.sdk.steps import Deliver, Open, Send, StreamSteps, UnarySteps, Wait
from fairlead.sdk.tracing import CallSpan, Tracing
from fairlead.sdk.transport import Method, Request, UnaryResponse
from fairlead.sdk.tries import Plan, Tries


class ClientCore:
    """Everything a client decides, for any number of calls at once.

    Args:
        book: The routers.
        api_key: The tenant's key.
        policy: How often to try again.
        tracing: Where spans go.
        now_s: Monotonic time, seconds.
        draw: A random number, 0 up to 1.
        tickets: Streams come from the replicas themselves, where they can.
    """

    def __init__(
        self,
        book: AddressBook,
        api_key: str,
        policy: RetryPolicy,
        tracing: Tracing,
        now_s: Callable[[], float],
        draw: Callable[[], float],
        *,
        tickets: bool = False,
    ) -> None:
        self._direct = DirectMode(tickets)
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
            tries = self._tries(request, deadline_s, span, "Generate", self._ends_s(deadline_s))
            response = yield from _unary(tries)
            if not isinstance(response, inference_pb2.GenerateResponse):
                raise TypeError(f"the transport answered Generate with {type(response).__name__}")
            generation = generation_from(response, tries.attempts)
            span.answered(generation)
            return generation

    def list_models(self, deadline_s: float | None) -> UnarySteps[tuple[ModelInfo, ...]]:
        """The steps of listing the models the tenant may use."""
        with self._tracing.call(None) as span:
            ends_s = self._ends_s(deadline_s)
            tries = self._tries(inference_pb2.ListModelsRequest(), deadline_s, span, "ListModels", ends_s)
            response = yield from _unary(tries)
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
        ends_s = self._ends_s(deadline_s)
        with self._tracing.call(request) as span:
            attempts = 0
            if self._direct.wanted(self._now_s()):
                tries = self._tries(request, deadline_s, span, "IssueTicket", ends_s)
                streamed = yield from stream_direct(self._direct, tries, request, span, self._now_s)
                if isinstance(streamed, Generation):
                    span.answered(streamed)
                    return streamed
                attempts = streamed
            tries = self._tries(request, deadline_s, span, "StreamGenerate", ends_s)
            message: inference_pb2.StreamGenerateResponse | None
            while True:
                try:
                    yield Open(tries.next())
                    message = yield from read()
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
                    message = yield from read()
                except FairleadError as error:
                    tries.broken(error)
            generation = folded.result(attempts + tries.attempts)
            span.answered(generation)
            return generation

    def _ends_s(self, deadline_s: float | None) -> float | None:
        return None if deadline_s is None else self._now_s() + deadline_s

    def _tries(
        self, request: Request, deadline_s: float | None, span: CallSpan, method: Method, ends_s: float | None
    ) -> Tries:
        metadata = (self._authorization, *span.metadata)
        return Tries(
            self._book, self._policy, span, self._now_s, self._draw, Plan(method, request, metadata, deadline_s, ends_s)
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
