"""How long one step of a replica takes, for the configurations that were measured.

One step that computes P prefill tokens, in chunks j of P_j tokens behind c_j that were computed before, and one token
for each of B decoding sequences with K tokens of context between them, n = P + B, takes in milliseconds

    h + max(w0 + w1*n, g0 + g1*n) + a0*[B > 0] + ad*K + ap * sum_j((c_j + P_j)^2 - c_j^2)

The linear layers are bound by reading the weights (w) or by computing (g); attention adds the reading of the KV cache
(ad) and the quadratic part of prefill (ap); h is the host's work.

Source: kernels of vLLM as measured by NVIDIA AIConfigurator (Apache-2.0), composed layer by layer (data/README.md) and
fitted by fit.py: the mean error is 1.5 to 2.4 % over decode steps and 0.7 to 2.3 % over prefill steps
(`python -m engines.simulated.fit` prints it). Different software stacks differ by 10 to 25 %. The constants published
for the same measurements met NVIDIA NIM's Llama 70B FP8 TP2: time to first token of 5,000 tokens 408 ms against 407 ms.

Example: 64 sequences with 1,000 tokens of context each decode on an H100 in 0.7 + 6.308 + 0.007976*64 + 0.1686 +
4.388e-5*64,000 = 10.50 ms; 2,048 tokens of a fresh prompt take 0.7 + 2.25 + 0.019*2,048 + 4.994e-7*2,048^2 = 43.96 ms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fairlead.errors import InvalidArgumentError

LLAMA_3_1_CONTEXT_TOKENS: Final = 131_072
"""Longest prompt plus output of the Llama 3.1 family. Source: its model card."""

_MS_PER_S: Final = 1_000.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """The step-time constants of one model on one accelerator configuration, named as in the formula above.

    Attributes:
        label: Hardware label of cost profiles and replica records: "h100", "a100", "h100-tp4", "a100-tp4", "h100-tp8".
        model: The model the constants are for.
        w0: Reading the weights, ms.
        w1: The same per token, ms.
        g0: Computing the linear layers, ms; negative where the fit's line crosses below zero outside its range.
        g1: The same per token, ms.
        a0: Decode attention, ms per step that decodes.
        ad: Decode attention, ms per token of context.
        ap: Prefill attention, ms per token squared.
        h: Host work, ms per step.
        kv_capacity_tokens: KV cache that fits beside the weights, tokens.
        weights_gb: Size of the weights, GB: what a start has to read.
    """

    label: str
    model: str
    w0: float
    w1: float
    g0: float
    g1: float
    a0: float
    ad: float
    ap: float
    h: float
    kv_capacity_tokens: int
    weights_gb: float = 16.1

    def step_s(self, *, prefill_tokens: int, prefill_squares: int, sequences: int, context_tokens: int) -> float:
        """Duration of one step.

        Args:
            prefill_tokens: P, prefill tokens computed in this step.
            prefill_squares: Sum over chunks of (c_j + P_j)^2 - c_j^2.
            sequences: B, sequences that decode.
            context_tokens: K, the sum of their contexts.

        Returns:
            Seconds.
        """
        tokens = prefill_tokens + sequences
        linear = max(self.w0 + self.w1 * tokens, self.g0 + self.g1 * tokens)
        decode = (self.a0 if sequences else 0.0) + self.ad * context_tokens
        return (self.h + linear + decode + self.ap * prefill_squares) / _MS_PER_S

    def decode_s(self, sequences: int, context_tokens: int, steps: int) -> float:
        """Duration of steps in which the same sequences decode and nothing else happens.

        Args:
            sequences: B, 1 or more.
            context_tokens: The sum of their contexts before the first step; it grows by B per step.
            steps: How many.

        Returns:
            Seconds: the sum of `step_s` over the steps.
        """
        linear = max(self.w0 + self.w1 * sequences, self.g0 + self.g1 * sequences)
        read_tokens = steps * context_tokens + sequences * (steps * (steps + 1) // 2)
        return (steps * (self.h + linear + self.a0) + self.ad * read_tokens) / _MS_PER_S

    def cold_start_s(self, *, read_gb_per_s: float = 3.5, graph_capture_s: float = 45.0) -> float:
        """How long a new replica takes until it can serve: reading the weights and capturing CUDA graphs.

        The defaults are the middles of what is usual: 2 to 5 GB/s from a local disk or an object store over a fast
        network, and 30 to 60 s of graph capture. Source: figures published for vLLM starts, which put the whole at 60
        to 300 s when an image has to be fetched too.

        Args:
            read_gb_per_s: Speed of reading the weights, above 0.
            graph_capture_s: Graph capture and warm-up, seconds, 0 or more.

        Returns:
            Seconds.

        Raises:
            InvalidArgumentError: An argument is out of range.
        """
        if not (0 < read_gb_per_s < math.inf and 0 <= graph_capture_s < math.inf):
            raise InvalidArgumentError("read_gb_per_s must be above 0 and graph_capture_s 0 or more", field="hardware")
        return self.weights_gb / read_gb_per_s + graph_capture_s


_8B: Final = "llama-3.1-8b"
_70B: Final = "llama-3.1-70b"

# What `python -m engines.simulated.fit` prints for the shipped measurements; a test keeps the two together.
_FITTED: Final = (
    Hardware("h100", _8B, 6.308, 0.007976, 2.25, 0.019, 0.1686, 4.388e-5, 4.994e-7, 0.7, 440_000, 16.1),
    Hardware("a100", _8B, 10.59, 0.02204, 5.554, 0.05394, 0.5634, 8.115e-5, 1.583e-6, 0.7, 440_000, 16.1),
    Hardware("h100-tp4", _70B, 15.15, 0.02913, 3.749, 0.05969, 0.3973, 2.832e-5, 6.974e-7, 2.0, 465_000, 141.1),
)

_PUBLISHED: Final = (
    Hardware("h100", _8B, 5.82, 0.0062, -1.80, 0.02121, 0.275, 4.31e-5, 3.9e-7, 0.7, 440_000, 16.1),
    # The host's work was 0.7 to 1 ms here: the middle.
    Hardware("a100", _8B, 9.81, 0.0194, 2.02, 0.05487, 0.566, 8.59e-5, 1.6e-6, 0.85, 440_000, 16.1),
    Hardware("h100-tp4", _70B, 14.66, 0.0268, 0.571, 0.06072, 0.771, 2.71e-5, 4.9e-7, 2.0, 465_000, 141.1),
    Hardware("a100-tp4", _70B, 26.24, 0.0753, 23.9, 0.14486, 1.53, 6.01e-5, 2.0e-6, 2.0, 465_000, 141.1),
    Hardware("h100-tp8", _70B, 9.10, 0.0225, 6.43, 0.03499, 0.810, 1.34e-5, 2.5e-7, 2.0, 1_360_000, 141.1),
)

PUBLISHED: Final[Mapping[str, Hardware]] = MappingProxyType({hardware.label: hardware for hardware in _PUBLISHED})
"""An earlier fit of the same source by least squares, by label: all there is where no measurements ship."""

HARDWARE: Final[Mapping[str, Hardware]] = MappingProxyType(
    {**PUBLISHED, **{hardware.label: hardware for hardware in _FITTED}}
)
"""Every configuration by its label: fitted where measurements ship, else published."""


def hardware(label: str) -> Hardware:
    """The constants of a hardware label.

    Raises:
        InvalidArgumentError: Nothing was measured under this label; the message lists those there are.
    """
    found = HARDWARE.get(label)
    if found is None:
        known = ", ".join(sorted(HARDWARE))
        raise InvalidArgumentError(f"no simulated hardware {label!r}; known: {known}", field="hardware")
    return found
