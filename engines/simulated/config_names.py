"""What the name of a measured configuration says: `{gpu}_{model}-{size}b_{dtype}_tp{n}`.

Kernel times know neither the host's work per step nor the room that is left for the KV cache. Both follow from the
name.

Example: "h100_llama3.1-70b_bf16_tp4" is 4 GPUs with 81.6 GB of usable memory each, of which an engine takes 0.9, and
141.1 GB of weights: (293.8 - 141.1) GB / 327,680 bytes per token = 465,000 tokens; the host takes 2 ms per step.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_NAME: Final = re.compile(
    r"(?P<gpu>[a-z0-9.-]+)_(?P<model>.*?(?:(?P<experts>\d+)x)?(?P<size>\d+(?:\.\d+)?)b[^_]*)_(?P<dtype>[a-z0-9]+)"
    r"_tp(?P<tp>[1-9]\d{0,2})"
)

HOST_MS_TP1: Final = 0.7
"""Host work per step of an engine on one GPU, ms. Source: data/README.md."""
HOST_MS_TP: Final = 2.0
"""Host work per step over several GPUs, ms. Source: data/README.md."""

_MEMORY_SHARE: Final = 0.9  # vLLM's default gpu_memory_utilization
# GB of a card by its name on the box. An 80 GB card has 85.9e9 bytes; activations, CUDA graphs and communication
# buffers leave 81.6e9, which gives the capacities engines report for Llama 3.1 (440k, 465k and 1.36M tokens).
_USABLE_BYTES_PER_GB: Final = 1.02e9
_GPU_GB: Final = {"h100": 80, "a100": 80, "h200": 141, "b200": 180, "l40s": 48}
_GPU_GB_DEFAULT: Final = 80
_WEIGHT_BYTES: Final = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5, "int4": 0.5, "nvfp4": 0.5}
_PARAMETERS: Final = {8.0: 8.03e9, 70.0: 70.55e9, 405.0: 405.9e9}  # model cards of Llama 3.1
# Bytes of KV cache per token at 16 bit, of Llama 3.1 and 3.2: 2 * layers * KV heads * head size * 2. Sizes between
# follow the line through their neighbours in logarithms, sizes beyond the nearest one.
_KV_BYTES: Final = ((1.0, 32_768), (3.0, 114_688), (8.0, 131_072), (70.0, 327_680), (405.0, 516_096))
_KV_ROUNDED_TO: Final = 5_000  # the estimate knows no better
_KV_CAPACITY_MIN: Final = 20_000  # where the weights leave no room: enough to run at all


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """What a configuration's name tells.

    Attributes:
        label: Hardware label: "h100", "a100", "h100-tp4", "a100-tp4", "h100-tp8" for Llama 3.1 8B on one GPU and 70B
            on several, else made from the whole name.
        model: The model's name.
        host_ms: Host work per step, ms.
        kv_capacity_tokens: KV cache beside the weights, tokens.
        weights_gb: Size of the weights, GB.
        notes: What was assumed because the name does not tell, one sentence each.
    """

    label: str
    model: str
    host_ms: float
    kv_capacity_tokens: int
    weights_gb: float
    notes: tuple[str, ...]


def facts_of(config: str) -> ConfigFacts:
    """Reads a configuration's name.

    Args:
        config: Such as "h100_llama3.1-8b_bf16_tp1". A name that cannot be read gets the facts of Llama 3.1 8B on one
            80 GB GPU, with a note.
    """
    match = _NAME.fullmatch(config.strip().lower())
    if match is None:
        assumed = facts_of("h100_llama3.1-8b_bf16_tp1")
        note = (
            f"the name {config!r} is not of the form GPU_MODEL-SIZEb_DTYPE_tpN: host work, KV capacity and weights of "
            "Llama 3.1 8B on one 80 GB GPU were assumed"
        )
        model = assumed.model
        return ConfigFacts(
            _slug(config), model, assumed.host_ms, assumed.kv_capacity_tokens, assumed.weights_gb, (note,)
        )
    gpu, dtype, tp, notes = match["gpu"], match["dtype"], int(match["tp"]), []
    size = float(match["size"]) * int(match["experts"] or 1)
    if gpu not in _GPU_GB:
        notes.append(f"the memory of {gpu!r} is not known: {_GPU_GB_DEFAULT} GB assumed")
    if dtype not in _WEIGHT_BYTES:
        notes.append(f"the weight format {dtype!r} is not known: 2 bytes per weight assumed")
    weights = _PARAMETERS.get(size, size * 1e9) * _WEIGHT_BYTES.get(dtype, 2.0)
    room = _MEMORY_SHARE * _USABLE_BYTES_PER_GB * _GPU_GB.get(gpu, _GPU_GB_DEFAULT) * tp - weights
    capacity = round(room / _kv_bytes_per_token(size) / _KV_ROUNDED_TO) * _KV_ROUNDED_TO
    if capacity < _KV_CAPACITY_MIN:
        notes.append(f"the weights leave no room for a KV cache: {_KV_CAPACITY_MIN} tokens assumed")
    model = re.sub(r"^llama-?(?=\d)", "llama-", match["model"])
    plain = dtype in ("bf16", "fp16") and model == ("llama-3.1-8b" if tp == 1 else "llama-3.1-70b")
    return ConfigFacts(
        label=(gpu if tp == 1 else f"{gpu}-tp{tp}") if plain else _slug(config),
        model=model,
        host_ms=HOST_MS_TP1 if tp == 1 else HOST_MS_TP,
        kv_capacity_tokens=max(capacity, _KV_CAPACITY_MIN),
        weights_gb=round(weights / 1e9, 1),
        notes=tuple(notes),
    )


def _kv_bytes_per_token(size: float) -> float:
    """Estimate for a model of `size` billion parameters."""
    size = min(max(size, _KV_BYTES[0][0]), _KV_BYTES[-1][0])
    for (low, low_bytes), (high, high_bytes) in pairwise(_KV_BYTES):
        if size <= high:
            share = math.log(size / low) / math.log(high / low)
            return low_bytes * math.pow(high_bytes / low_bytes, share)
    return _KV_BYTES[-1][1]


def _slug(config: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", config.lower()).strip("-") or "unnamed"
