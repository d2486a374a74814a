"""A load client with a memory: every request it sent, when, to which router, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio

from fairlead.errors import Reason, from_rpc_error
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.inference.v1 import inference_pb2_grpc
from tests.faults.tenants import KEYS, MODEL

COMPLETED, REFUSED, FAILED, CANCELLED, LOST = "completed", "refused", "failed", "cancelled", "lost"
_REFUSALS = {Reason.QUOTA_USED_UP, Reason.QUOTA_HELD, Reason.QUOTA_TOO_SMALL}

# Every prompt begins with a random number, so that no prefix cache makes it cheaper than the others.
PROMPT = "The same words again and again, so that every request costs the same. " * 14
OUTPUT_TOKENS = 4
DEADLINE_S = 10.0
# Beyond this many open requests per stream of load, further ones are not sent: a hung router must not be piled up on.
_OPEN_MAX = 64


@dataclass(frozen=True, slots=True)
class Record:
    """One request as its client saw it. Times are monotonic seconds.

    Attributes:
        tenant: Who asked.
        router: Which router.
        sent_s: When it was sent.
        first_s: When the first token arrived; 0 for none.
        ended_s: When it ended.
        outcome: completed, refused (by a quota), failed (an error of the platform), cancelled (by the client), or lost:
            the connection broke or the deadline passed, and what the router counted is not known.
        reason: The platform's reason for a refusal or failure.
        cost_milli_mu: What the router says it charged; 0 where it could not say.
    """

    tenant: str
    router: str
    sent_s: float
    first_s: float
    ended_s: float
    outcome: str
    reason: str = ""
    cost_milli_mu: int = 0


@dataclass
class History:
    """All requests of one stretch of load, in the order of their ends."""

    records: list[Record] = field(default_factory=list)

    def of(self, tenant: str) -> list[Record]:
        """The requests of one tenant."""
        return [record for record in self.records if record.tenant == tenant]


@dataclass(frozen=True, slots=True)
class Stream:
    """Open-loop load of one tenant on one router.

    Attributes:
        tenant: Who asks.
        router: Name of the router.
        address: Its gRPC address.
        per_second: Requests sent per second, whatever becomes of them.
        cancel_share: Share of answers the client cancels after the first token, 0 to 1.
        output_tokens: Length of the answers.
    """

    tenant: str
    router: str
    address: str
    per_second: float
    cancel_share: float = 0.0
    output_tokens: int = OUTPUT_TOKENS


def request(output_tokens: int = OUTPUT_TOKENS) -> pb.GenerateRequest:
    """A request unlike any other, which runs to its limit."""
    sampling = pb.SamplingParameters(max_tokens=output_tokens, ignore_end_token=True, temperature=0.0)
    return pb.GenerateRequest(model=MODEL, prompt=f"{secrets.token_hex(8)} {PROMPT}", sampling=sampling)


class Load:
    """Sends requests until it is told to stop.

    Args:
        streams: What to send.
        seed: Of the choice which answers are cancelled.
    """

    def __init__(self, streams: Sequence[Stream], seed: int = 1) -> None:
        self.history = History()
        self._streams = streams
        self._random = random.Random(seed)
        self._stopping = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Sends until `stop`, then waits for what is open."""
        await asyncio.gather(*(self._send(stream) for stream in self._streams))
        while self._open:
            await asyncio.wait(self._open)

    def stop(self) -> None:
        """No further request is sent."""
        self._stopping.set()

    async def _send(self, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._random.random() / stream.per_second
        open_here: set[asyncio.Task[None]] = set()
        async with _channel(stream.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due_s):
                        await self._stopping.wait()
                        break
                # What a stalled client could not send in time is not sent in a heap.
                due_s = max(due_s + 1 / stream.per_second, loop.time() - 0.5)
                if len(open_here) < _OPEN_MAX:
                    cancel = self._random.random() < stream.cancel_share
                    task = asyncio.create_task(self._one(stub, stream, cancel=cancel))
                    for group in (self._open, open_here):
                        group.add(task)
                        task.add_done_callback(group.discard)
            while open_here:
                await asyncio.wait(open_here)

    async def _one(self, stub: inference_pb2_grpc.InferenceServiceAsyncStub, stream: Stream, *, cancel: bool) -> None:
        sent_s, first_s = time.monotonic(), 0.0
        outcome, reason, cost = COMPLETED, "", 0
        metadata = (("authorization", f"Bearer {KEYS[stream.tenant]}"),)
        call = stub.StreamGenerate(request(stream.output_tokens), metadata=metadata, timeout=DEADLINE_S)
        try:
            while isinstance(message := await call.read(), pb.StreamGenerateResponse):
                first_s = first_s or time.monotonic()
                if message.finish_reason:
                    cost = message.cost.settled_milli_mu
                elif cancel:
                    outcome = CANCELLED
                    call.cancel()
                    break
            if outcome == COMPLETED and await call.code() is not grpc.StatusCode.OK:
                raise _broken(call, await call.code(), await call.details())
        except grpc.aio.AioRpcError as failure:
            outcome, reason, cost = _classify(failure)
        except asyncio.CancelledError:
            outcome = CANCELLED if cancel else LOST
        self.history.records.append(
            Record(stream.tenant, stream.router, sent_s, first_s, time.monotonic(), outcome, reason, cost)
        )


def _broken(call: object, code: grpc.StatusCode, details: str) -> AssertionError:
    return AssertionError(f"a stream ended with {code.name} ({details}) without saying so: {call!r}")


def _classify(failure: grpc.aio.AioRpcError) -> tuple[str, str, int]:
    """Outcome, reason and cost of a call that ended with an error."""
    error = from_rpc_error(failure)
    trailers = dict(failure.trailing_metadata() or ())
    cost = int(trailers.get("fairlead-settled-milli-mu", 0))
    if error.reason is Reason.UNSPECIFIED:
        return LOST, failure.code().name, cost
    if error.reason in _REFUSALS and "fairlead-replica" not in {key for key, text in trailers.items() if text}:
        return REFUSED, error.reason.value, cost
    return FAILED, error.reason.value, cost


@asynccontextmanager
async def _channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A connection that comes back quickly and gives a dead peer up."""
    options = (
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.use_local_subchannel_pool", 1),
    )
    channel = grpc.aio.insecure_channel(address, options=options)
    try:
        yield channel
    finally:
        await channel.close()


@asynccontextmanager
async def load(streams: Sequence[Stream]) -> AsyncIterator[History]:
    """Load for as long as the block runs; when it is left, every request has ended and is in the history."""
    running = Load(streams)
    task = asyncio.create_task(running.run())
    try:
        yield running.history
    finally:
        running.stop()
        await task


async def ask(tenant: str, address: str) -> bool:
    """Sends one request that nobody counts; returns whether it was answered."""
    return await _answer(tenant, address) is not None


async def saved_milli_mu(tenant: str, address: str) -> int:
    """What a tenant can spend at once at a router, after one request that nobody counts; 0 if that was refused."""
    answer = await _answer(tenant, address)
    return 0 if answer is None else answer.cost.quota_left_milli_mu


async def _answer(tenant: str, address: str) -> pb.GenerateResponse | None:
    metadata = (("authorization", f"Bearer {KEYS[tenant]}"),)
    async with _channel(address) as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            return await stub.Generate(request(), metadata=metadata, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError:
            return None
