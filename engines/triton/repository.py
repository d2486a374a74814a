"""Writes a Triton model repository: one model in either dialect, run by Fairlead's CPU backend.

    REPOSITORY/ensemble/config.pbtxt                  tensors and parameters
    REPOSITORY/ensemble/1/model.py                    what Triton loads
    REPOSITORY/ensemble/1/fairlead_triton_backend/    a copy of engines/triton/backend

The copy makes a repository complete in itself: it can be mounted into any Triton whose Python has openvino-genai.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.triton.tensors import INPUTS, MODEL_NAMES, OUTPUTS, Dialect, Tensor

BACKEND = Path(__file__).resolve().parent / "backend"
PACKAGE = "fairlead_triton_backend"
# OpenVINO's paged attention on a CPU keeps 32 tokens in a block.
KV_BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What one replica's model repository holds.

    Attributes:
        dialect: Which tensors it has.
        model_directory: OpenVINO IR with its tokenizer and config.json.
        threads: Inference threads, 1 or more. Two replicas on a machine of two cores take 1 each.
        sequences_max: Most sequences in one step, 1 or more.
        step_tokens_max: Most tokens in one step, prompt chunks and decoding together, 32 or more. Bounds how long a
            step takes, and so how fast a cancellation is.
        kv_tokens: KV cache, tokens; rounded up to whole blocks and to at least one full context.
        stream_interval_ms: Least time between two responses of a request, so that many tokens a second do not become as
            many messages; the first and the last token never wait. 0 sends every token by itself, as the LLM API
            dialect always does.
        batch_size_max: Triton's max_batch_size; 0 for none. Above 0 every tensor gets a leading dimension of 1, as in
            NVIDIA's in-flight batcher templates.
    """

    dialect: Dialect
    model_directory: Path
    threads: int = 1
    sequences_max: int = 64
    step_tokens_max: int = 512
    kv_tokens: int = 65_536
    stream_interval_ms: int = 20
    batch_size_max: int = 0


def context_tokens(model_directory: Path) -> int:
    """Returns the longest prompt plus output of a model, tokens, from its config.json."""
    config = json.loads((model_directory / "config.json").read_text())
    return int(config["max_position_embeddings"])


def write_repository(spec: ModelSpec, target: Path) -> str:
    """Writes the repository, replacing what was there.

    Args:
        spec: What it holds.
        target: The repository's folder.

    Returns:
        The model's name in it.
    """
    name = MODEL_NAMES[spec.dialect]
    shutil.rmtree(target, ignore_errors=True)
    version = target / name / "1"
    shutil.copytree(BACKEND, version / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    (version / "model.py").write_text(f"from {PACKAGE}.model import TritonPythonModel  # noqa: F401\n")
    (target / name / "config.pbtxt").write_text(model_config(spec))
    return name


def model_config(spec: ModelSpec) -> str:
    """Returns the text of config.pbtxt."""
    context = context_tokens(spec.model_directory)
    blocks = -(-max(spec.kv_tokens, context) // KV_BLOCK_TOKENS)
    parameters = {
        "dialect": spec.dialect.value,
        "model_directory": str(spec.model_directory.resolve()),
        "threads": str(spec.threads),
        "sequences_max": str(spec.sequences_max),
        "step_tokens_max": str(spec.step_tokens_max),
        "stream_interval_ms": str(spec.stream_interval_ms),
        "kv_blocks": str(blocks),
        "kv_capacity_tokens": str(blocks * KV_BLOCK_TOKENS),
        "context_tokens": str(context),
    }
    return "\n".join(
        [
            f'name: "{MODEL_NAMES[spec.dialect]}"',
            'backend: "python"',
            f"max_batch_size: {spec.batch_size_max}",
            "model_transaction_policy { decoupled: true }",
            "instance_group [ { count: 1 kind: KIND_CPU } ]",
            *(_tensor("input", tensor) for tensor in INPUTS[spec.dialect]),
            *(_tensor("output", tensor) for tensor in OUTPUTS[spec.dialect]),
            *_parameters(parameters),
            "",
        ]
    )


def _tensor(kind: str, tensor: Tensor) -> str:
    optional = " optional: true" if kind == "input" and tensor.optional else ""
    return f'{kind} [ {{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: [ {tensor.size} ]{optional} }} ]'


def _parameters(values: Mapping[str, str]) -> list[str]:
    return [
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in values.items()
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
