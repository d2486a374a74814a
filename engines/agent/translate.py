"""Wire messages to the engine's own types, with every field checked."""

from __future__ import annotations

from typing import Final

from engines.agent.core.prefix_cache import BLOCKS_MAX
from engines.agent.core.queue import Priority
from engines.agent.core.replica_load import Origin
from engines.engine import EngineRequest, Finish, Prompt, Sampling
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import InvalidArgumentError, NotFoundError, Reason
from fairlead.inference.v1 import inference_pb2

_PRIORITIES: Final = {
    inference_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    inference_pb2.PRIORITY_BATCH: Priority.BATCH,
    inference_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    inference_pb2.PRIORITY_SYSTEM: Priority.SYSTEM,
}

FINISH_REASONS: Final = {
    Finish.STOP: inference_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    Finish.CANCELLED: inference_pb2.FINISH_REASON_CANCELLED,
}
"""The wire's finish reasons."""


def priority(request: engine_pb2.EngineGenerateRequest) -> Priority:
    """The scheduling class of a request; classes of a newer router count as interactive."""
    return _PRIORITIES.get(request.priority, Priority.INTERACTIVE)


def engine_request(request: engine_pb2.EngineGenerateRequest, model_id: str, traceparent: str) -> EngineRequest:
    """What the engine is to do.

    Args:
        request: As the router sent it.
        model_id: The model this replica serves.
        traceparent: Trace context to hand on, or empty.

    Raises:
        NotFoundError: It is for another model.
        InvalidArgumentError: A field is missing or out of range; it is named.
    """
    inner = request.request
    if not request.request_id:
        raise InvalidArgumentError("a request needs an id", field="request_id")
    if inner.model != model_id:
        raise NotFoundError(f"this replica serves {model_id!r}, not {inner.model!r}", reason=Reason.UNKNOWN_MODEL)
    return EngineRequest(
        request_id=request.request_id,
        prompt=_prompt(inner),
        sampling=_sampling(inner.sampling),
        priority=priority(request),
        traceparent=traceparent,
    )


def origin(request: engine_pb2.EngineGenerateRequest) -> Origin:
    """Where a request comes from and where it belongs; blocks beyond the most there may be are left out."""
    return Origin(
        router_id=request.router_id,
        dispatch_number=request.dispatch_number,
        shard_key=request.shard_key,
        prefix_blocks=tuple(request.prefix_blocks[:BLOCKS_MAX]),
    )


def _prompt(request: inference_pb2.GenerateRequest) -> Prompt:
    if request.WhichOneof("input") == "prompt":
        return Prompt(text=request.prompt)
    if not request.chat.messages:
        raise InvalidArgumentError("a request needs a prompt or at least one chat message", field="request.input")
    return Prompt(messages=tuple((message.role, message.content) for message in request.chat.messages))


def _sampling(sampling: inference_pb2.SamplingParameters) -> Sampling:
    if sampling.max_tokens < 1:
        raise InvalidArgumentError("max_tokens must be 1 or more", field="request.sampling.max_tokens")

    def given(name: str) -> bool:
        return sampling.HasField(name)  # type: ignore[arg-type]  # the stubs want each name spelled out

    return Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature if given("temperature") else None,
        top_p=sampling.top_p if given("top_p") else None,
        top_k=sampling.top_k if given("top_k") else None,
        seed=sampling.seed if given("seed") else None,
        stop=tuple(sampling.stop),
        presence_penalty=sampling.presence_penalty if given("presence_penalty") else None,
        frequency_penalty=sampling.frequency_penalty if given("frequency_penalty") else None,
        repetition_penalty=sampling.repetition_penalty if given("repetition_penalty") else None,
        ignore_end_token=sampling.ignore_end_token,
    )
