"""Requests as the messages of Triton's own client package."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

from common.triton.wire import ServedModel, tensors_of
from engines.engine import EngineRequest


def encode(model: ServedModel, request: EngineRequest, prompt: str) -> Any:
    """Turns a request into Triton's.

    Args:
        model: Whom it is for.
        request: The request.
        prompt: Its prompt as plain text.

    Returns:
        A ModelInferRequest.

    Raises:
        InvalidArgumentError: The request sets something that this model has no tensor for.
    """
    message = service_pb2.ModelInferRequest(model_name=model.name, id=request.request_id)
    # Without it the end of a stream whose last response came before the end was known would be silent.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    tensors = tensors_of(model, request.sampling, prompt)
    for name, datatype, shape, raw in tensors.inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw)
    for name in tensors.outputs:
        message.outputs.add(name=name)
    return message
