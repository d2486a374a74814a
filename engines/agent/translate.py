"""Wire messages to the engine's own types, with every field checked."""

from __future__ import annotations

from typing import Final

from common.generation import FINISH_REASONS, prompt_of, sampling_of
from engines.agent.core.prefix_cache import BLOCKS_MAX
from engines.agent.core.queue import Priority
from engines.agent.core.replica_load import Origin
from engines.engine import EngineRequest
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import InvalidArgumentError, NotFoundError, Reason
from fairlead.inference.v1 import inference_pb2

__all__ = ["FINISH_REASONS", "engine_request", "origin", "priority"]

_PRIORITIES: Final = {
    inference_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    inference_pb2.PRIORITY_BATCH: Priority.BATCH,
    inference_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    inference_pb2.PRIORITY_SYSTEM: Priority.SYSTEM,
}


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
        prompt=prompt_of(inner),
        sampling=sampling_of(inner.sampling),
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
