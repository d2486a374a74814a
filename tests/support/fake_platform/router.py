"""InferenceService in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fairlead.errors import (
    STATUS_DETAILS_KEY,
    FairleadError,
    NotFoundError,
    Reason,
    UnauthenticatedError,
    UnavailableError,
    to_status,
)
from fairlead.inference.v1 import decision_pb2, inference_pb2, inference_pb2_grpc

MODEL = inference_pb2.ModelInfo(
    id="tiny", context_tokens=256, output_tokens_max=128, bytes_per_token=4.0, create_time_s=1_700_000_000
)


@dataclass
class Seen:
    """One try as it arrived."""

    method: str
    request: Any
    metadata: dict[str, str]
    timeout_s: float | None


async def abort(context: Any, error: FairleadError, trailers: tuple[tuple[str, str], ...] = ()) -> None:
    """Ends a call the way the platform does."""
    details = (STATUS_DETAILS_KEY, to_status(error).SerializeToString())
    await context.abort(error.code, error.message, (*trailers, details))


@dataclass
class FakeRouter(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with the words w0 w1 ... up to max_tokens."""

    name: str = "router-1"
    keys: dict[str, str] = field(default_factory=lambda: {"fl-key-alpha": "alpha", "fl-key-beta": "beta"})
    models: list[inference_pb2.ModelInfo] = field(default_factory=lambda: [MODEL])
    refusals: deque[FairleadError] = field(default_factory=deque)
    """The next tries of Generate and StreamGenerate end with these before the first token."""
    break_after_tokens: int | None = None
    """Streams break after so many tokens."""
    stop_silently_after: int | None = None
    """Streams end with OK after so many tokens, without their last message."""
    hold: asyncio.Event | None = None
    """Streams wait for this event after their first token."""
    never_answers: bool = False
    """No answer before the deadline."""
    seen: list[Seen] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    settled_milli_mu: dict[str, int] = field(default_factory=dict)
    decisions: list[decision_pb2.Decision] = field(default_factory=list)
    """What it remembers."""

    async def _admit(self, method: str, request: Any, context: Any) -> str:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        self.seen.append(Seen(method, request, metadata, context.time_remaining()))
        key = metadata.get("authorization", "").removeprefix("Bearer ")
        if key not in self.keys:
            await abort(context, UnauthenticatedError("this key is unknown: create one", reason=Reason.UNKNOWN_KEY))
        if self.refusals and method != "ListModels":
            await abort(context, self.refusals.popleft(), (("fairlead-estimated-milli-mu", "7000"),))
        if method != "ListModels" and request.model not in {model.id for model in self.models}:
            await abort(context, NotFoundError(f"no model {request.model}", reason=Reason.UNKNOWN_MODEL))
        if self.never_answers:
            await asyncio.Event().wait()
        return self.keys[key]

    def _usage(self, request: Any, output_tokens: int) -> inference_pb2.Usage:
        text = request.prompt or "".join(turn.content for turn in request.chat.messages)
        return inference_pb2.Usage(input_tokens=max(1, len(text.encode()) // 4), output_tokens=output_tokens)

    def _cost(self, request: Any, usage: inference_pb2.Usage) -> inference_pb2.Cost:
        prefill, decode = usage.input_tokens, usage.output_tokens * 10
        self.settled_milli_mu[request.request_id] = prefill + decode
        return inference_pb2.Cost(
            estimated_milli_mu=prefill + 160,
            settled_milli_mu=prefill + decode,
            prefill_milli_mu=prefill,
            decode_milli_mu=decode,
            quota_left_milli_mu=9_000,
        )

    async def Generate(self, request: Any, context: Any) -> inference_pb2.GenerateResponse:
        await self._admit("Generate", request, context)
        tokens = request.sampling.max_tokens or 16
        usage = self._usage(request, tokens)
        return inference_pb2.GenerateResponse(
            request_id=request.request_id,
            model=request.model,
            text=" ".join(f"w{number}" for number in range(tokens)),
            finish_reason=inference_pb2.FINISH_REASON_LENGTH,
            usage=usage,
            cost=self._cost(request, usage),
            replica_id="replica-1",
        )

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        await self._admit("StreamGenerate", request, context)
        tokens = request.sampling.max_tokens or 16
        try:
            for number in range(tokens):
                if number == self.break_after_tokens:
                    await self._break(request, context, number)
                if number == self.stop_silently_after:
                    return
                if number == 1 and self.hold is not None:
                    await self.hold.wait()
                yield inference_pb2.StreamGenerateResponse(
                    request_id=request.request_id if number == 0 else "",
                    text=f" w{number}" if number else "w0",
                    output_tokens=1,
                    replica_id="replica-1" if number == 0 else "",
                )
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.append(request.request_id)
            raise
        usage = self._usage(request, tokens)
        yield inference_pb2.StreamGenerateResponse(
            request_id=request.request_id,
            finish_reason=inference_pb2.FINISH_REASON_LENGTH,
            usage=usage,
            cost=self._cost(request, usage),
            replica_id="replica-1",
        )

    async def _break(self, request: Any, context: Any, number: int) -> None:
        settled = 10 * number
        self.settled_milli_mu[request.request_id] = settled
        error = UnavailableError("the replica was lost mid-stream", reason=Reason.STREAM_BROKEN)
        await abort(context, error, (("fairlead-replica", "replica-1"), ("fairlead-settled-milli-mu", str(settled))))

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:
        await self._admit("ListModels", request, context)
        return inference_pb2.ListModelsResponse(models=self.models)
