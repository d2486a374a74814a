"""The asyncio client."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

from opentelemetry.trace import TracerProvider

from fairlead.errors import FairleadError
from fairlead.sdk.addresses import AddressBook
from fairlead.sdk.aio_transport import AsyncMessageStream, AsyncTransport, GrpcAsyncTransport
from fairlead.sdk.core import ClientCore
from fairlead.sdk.decisions import Explanation
from fairlead.sdk.requests import MessageLike, RequestOptions, build_request, deadline_from
from fairlead.sdk.results import Generation, ModelInfo, Piece
from fairlead.sdk.retries import RetryPolicy
from fairlead.sdk.settings import DEFAULT_DEADLINE_S, Tls, addresses_from, api_key_from, tls_beside, tls_from
from fairlead.sdk.steps import Deliver, Open, Send, StreamSteps, UnarySteps, Wait
from fairlead.sdk.tracing import Tracing
from fairlead.sdk.transport import StreamResponse, UnaryResponse

Result = TypeVar("Result")
Waited = TypeVar("Waited")


class AsyncClient:
    """A connection to Fairlead for asyncio. Use one client on one event loop, for any number of tasks.

        async with fairlead.AsyncClient("127.0.0.1:8081", api_key="fl-...") as client:
            async with client.stream_generate("Once upon a time", model="tiny-llama") as stream:
                async for piece in stream:
                    print(piece.text, end="", flush=True)
            print(stream.result.cost.settled_mu)

    Args:
        address: host:port of a router, or several (list, or comma-separated): calls go to them in turn, and to the
            others while one is down. FAIRLEAD_ADDRESS when left out, else 127.0.0.1:8081.
        api_key: The tenant's key. FAIRLEAD_API_KEY when left out.
        tls: True, or a `Tls`, to encrypt; False for plain text. FAIRLEAD_TLS and FAIRLEAD_TLS_CA_FILE when left out.
        retries: How often and how patiently to try again.
        deadline_s: Seconds one request may take over all its tries, where it names none; None for no limit.
        tickets: Streams come from the replicas themselves: the router only admits the request and says where. For
            clients in the replicas' own network; everything else goes through the router as ever. Not with TLS, which
            replicas do not speak.
        tracer_provider: Where spans go; OpenTelemetry's global provider when left out.
        transport: For tests: used instead of the network.

    Raises:
        InvalidArgumentError: An address or a setting is not usable.
        UnauthenticatedError: There is no API key.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        tls: bool | Tls | None = None,
        retries: RetryPolicy | None = None,
        deadline_s: float | None = DEFAULT_DEADLINE_S,
        tickets: bool = False,
        tracer_provider: TracerProvider | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        self._core = ClientCore(
            AddressBook(addresses_from(address)),
            api_key_from(api_key),
            retries or RetryPolicy(),
            Tracing(tracer_provider),
            time.monotonic,
            random.random,
            tickets=tickets,
        )
        self._deadline_s = deadline_from({}, deadline_s)
        self._transport = transport or GrpcAsyncTransport(tls_beside(tickets, tls_from(tls)))

    async def generate(self, prompt: str, *, model: str, **options: Unpack[RequestOptions]) -> Generation:
        """Continues a text and returns everything at once; see `Client.generate`."""
        return await self._generate(model, prompt, None, options)

    async def chat(
        self, messages: Iterable[MessageLike], *, model: str, **options: Unpack[RequestOptions]
    ) -> Generation:
        """Answers a conversation and returns everything at once; see `Client.chat`."""
        return await self._generate(model, None, messages, options)

    def stream_generate(self, prompt: str, *, model: str, **options: Unpack[RequestOptions]) -> AsyncStream:
        """Continues a text piece by piece; see `Client.stream_generate`. Not a coroutine: iterate over the result."""
        return self._stream(model, prompt, None, options)

    def stream_chat(
        self, messages: Iterable[MessageLike], *, model: str, **options: Unpack[RequestOptions]
    ) -> AsyncStream:
        """Answers a conversation piece by piece; see `Client.stream_chat`. Not a coroutine: iterate over the result."""
        return self._stream(model, None, messages, options)

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """Lists the models the tenant may use, sorted by id.

        Raises:
            FairleadError: One of its subclasses.
        """
        return await run_unary(self._core.list_models(self._deadline_s), self._transport)

    async def explain(self, request_id: str) -> Explanation:
        """Explains one of the tenant's own requests: what it needed and cost, which replica served it, and why.

        Routers remember their newest requests for a while; one in flight can be explained too.

            try:
                await client.generate(prompt, model="tiny-llama", request_id="q-1")
            except fairlead.QuotaExceededError:
                print((await client.explain("q-1")).text())

        Args:
            request_id: Its id, as in `Generation.request_id` or an error's `metadata["request_id"]`.

        Raises:
            NotFoundError: No router remembers it.
            FairleadError: Another of its subclasses.
        """
        return await run_unary(self._core.explain(request_id, self._deadline_s), self._transport)

    async def aclose(self) -> None:
        """Closes every connection; requests in flight are cancelled."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _generate(
        self, model: str, prompt: str | None, messages: Iterable[MessageLike] | None, options: RequestOptions
    ) -> Generation:
        request = build_request(model, prompt, messages, options)
        steps = self._core.generate(request, deadline_from(options, self._deadline_s))
        return await run_unary(steps, self._transport)

    def _stream(
        self, model: str, prompt: str | None, messages: Iterable[MessageLike] | None, options: RequestOptions
    ) -> AsyncStream:
        request = build_request(model, prompt, messages, options)
        steps = self._core.stream(request, deadline_from(options, self._deadline_s))
        return AsyncStream(steps, self._transport, request.request_id)


class AsyncStream(AsyncIterator[Piece]):
    """A streamed answer: iterate over its pieces, then read `result`.

    Leaving the `async with` block, or `aclose`, before the end cancels the request; what arrived is charged. So does
    cancelling the task that reads.
    """

    def __init__(self, steps: StreamSteps, transport: AsyncTransport, request_id: str) -> None:
        self._steps = steps
        self._transport = transport
        self._messages: AsyncMessageStream | None = None
        self._result: Generation | None = None
        self.request_id = request_id
        """The id of the request, known before it is sent."""

    @property
    def result(self) -> Generation:
        """The whole answer, once the last piece was read.

        Raises:
            RuntimeError: The stream has not ended, or ended with an error.
        """
        if self._result is None:
            raise RuntimeError("the stream has no result before its end: read all pieces first")
        return self._result

    async def read_all(self) -> Generation:
        """Reads what is left and returns the whole answer."""
        async for _ in self:
            pass
        return self.result

    async def __anext__(self) -> Piece:
        reply: StreamResponse | UnaryResponse | None = None
        error: FairleadError | None = None
        while True:
            try:
                step = self._steps.throw(error) if error else self._steps.send(reply)
            except StopIteration as end:
                self._result = end.value if end.value is not None else self._result
                raise StopAsyncIteration from None
            reply, error = None, None
            match step:
                case Deliver(piece):
                    return piece
                case Wait(seconds):
                    await self._or_close(asyncio.sleep(seconds))
                case Send(outgoing):
                    try:
                        reply = await self._or_close(self._transport.unary(outgoing))
                    except FairleadError as failure:
                        error = failure
                case Open(outgoing):
                    self._messages = self._transport.stream(outgoing)
                case _:
                    assert self._messages is not None, "the core reads only what it opened"
                    try:
                        reply = await self._or_close(self._messages.read())
                    except FairleadError as failure:
                        error = failure

    async def aclose(self) -> None:
        """Cancels the request if it has not ended; does nothing after its end."""
        self._close()

    def _close(self) -> None:
        self._steps.close()
        if self._messages is not None:
            self._messages.cancel()

    async def _or_close(self, work: Awaitable[Waited]) -> Waited:
        # A cancelled reader will not come back for the rest: the router must stop the work, and the span must end.
        try:
            return await work
        except asyncio.CancelledError:
            self._close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


async def run_unary(steps: UnarySteps[Result], transport: AsyncTransport) -> Result:
    """Carries out the steps of a unary call.

    Args:
        steps: From the core.
        transport: Where tries are sent.
    """
    reply: UnaryResponse | None = None
    error: FairleadError | None = None
    try:
        while True:
            try:
                step = steps.throw(error) if error else steps.send(reply)
            except StopIteration as end:
                result: Result = end.value
                return result
            reply, error = None, None
            match step:
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case Send(outgoing):
                    try:
                        reply = await transport.unary(outgoing)
                    except FairleadError as failure:
                        error = failure
    finally:
        steps.close()
