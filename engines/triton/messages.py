"""Messages of the agent's: requests as Triton's own client package has them, and a model as routers want to know it."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

from common.triton.chat import ChatTemplate
from common.triton.wire import ServedModel, tensors_of
from engines.engine import EngineRequest
from fairlead.engine.v1 import engine_pb2


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


def described(model: ServedModel, template: ChatTemplate, *, status_errors: bool) -> engine_pb2.TritonModel:
    """What routers must know of a model that they talk to themselves.

    Args:
        model: The model.
        template: Its chat template.
        status_errors: Whether streams that fail are to end with a status.
    """
    message = engine_pb2.TritonModel(
        outputs=sorted(model.outputs),
        chat_template=template.source,
        template_tokens=template.tokens,
        status_errors=status_errors,
    )
    for name, (datatype, rank) in model.inputs.items():
        message.inputs.add(name=name, datatype=datatype, rank=rank)
    return message
