"""TensorRT-LLM's two tensor dialects, as NVIDIA's model repositories declare them.

- `ENSEMBLE`: the models `ensemble` and `tensorrt_llm_bls` of the in-flight batcher. Each streamed response carries the
  new text and, where asked for, the number of new tokens.
- `LLMAPI`: the model `tensorrt_llm` of the LLM API backend. Each streamed response stands for one token and carries
  the whole text so far.

Tensors marked as an extension are ours: Fairlead's CPU backend offers them, NVIDIA's servers do not, and the adapter
uses them only where the server's metadata lists them.

Source: NVIDIA/TensorRT-LLM, triton_backend/all_models/{inflight_batcher_llm/ensemble,llmapi/tensorrt_llm}/config.pbtxt
and the models' sources beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.triton.wire import Dialect

__all__ = ["INPUTS", "KNOWN_MODELS", "MODEL_NAMES", "OUTPUTS", "Dialect", "Tensor"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model.

    Attributes:
        name: As on the wire.
        datatype: Triton's name without the TYPE_ prefix: "STRING", "INT32", "FP32", "UINT64", "BOOL".
        size: Elements; -1 for any number.
        optional: Whether a request may leave it out. Outputs are always optional.
    """

    name: str
    datatype: str
    size: int = 1
    optional: bool = True


ENSEMBLE_INPUTS = (
    Tensor("text_input", "STRING", optional=False),
    Tensor("max_tokens", "INT32", optional=False),
    Tensor("stop_words", "STRING", size=-1),
    Tensor("end_id", "INT32"),
    Tensor("pad_id", "INT32"),
    Tensor("top_k", "INT32"),
    Tensor("top_p", "FP32"),
    Tensor("temperature", "FP32"),
    Tensor("repetition_penalty", "FP32"),
    Tensor("presence_penalty", "FP32"),
    Tensor("frequency_penalty", "FP32"),
    Tensor("min_tokens", "INT32"),
    Tensor("seed", "UINT64"),
    Tensor("stream", "BOOL"),
    Tensor("return_num_input_tokens", "BOOL"),
    Tensor("return_num_output_tokens", "BOOL"),
)
ENSEMBLE_OUTPUTS = (
    Tensor("text_output", "STRING", size=-1),
    Tensor("sequence_index", "INT32"),
    Tensor("num_input_tokens", "INT32"),
    Tensor("num_output_tokens", "INT32"),
)
LLMAPI_INPUTS = (
    Tensor("text_input", "STRING", size=-1, optional=False),
    Tensor("streaming", "BOOL"),
    Tensor("sampling_param_temperature", "FP32"),
    Tensor("sampling_param_top_k", "INT32"),
    Tensor("sampling_param_top_p", "FP32"),
    Tensor("sampling_param_frequency_penalty", "FP32"),
    Tensor("sampling_param_presence_penalty", "FP32"),
    Tensor("sampling_param_max_tokens", "INT32"),
    Tensor("sampling_param_stop", "STRING", size=-1),
    Tensor("sampling_param_seed", "UINT64"),
    Tensor("return_finish_reason", "BOOL"),
    Tensor("return_stop_reason", "BOOL"),
    Tensor("stop", "BOOL"),
    # Extensions.
    Tensor("sampling_param_repetition_penalty", "FP32"),
    Tensor("sampling_param_ignore_eos", "BOOL"),
)
LLMAPI_OUTPUTS = (
    Tensor("text_output", "STRING", size=-1),
    Tensor("finish_reason", "STRING", size=-1),
    Tensor("stop_reason", "STRING", size=-1),
    # Extension.
    Tensor("num_input_tokens", "INT32"),
)

INPUTS = {Dialect.ENSEMBLE: ENSEMBLE_INPUTS, Dialect.LLMAPI: LLMAPI_INPUTS}
OUTPUTS = {Dialect.ENSEMBLE: ENSEMBLE_OUTPUTS, Dialect.LLMAPI: LLMAPI_OUTPUTS}
# The name NVIDIA gives the model of each dialect.
MODEL_NAMES = {Dialect.ENSEMBLE: "ensemble", Dialect.LLMAPI: "tensorrt_llm"}
# Models looked for, in this order, on a server whose model nobody named.
KNOWN_MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm")
