"""How long one step of a replica takes, for the configurations that were measured.

One step that computes P prefill tokens, in chunks j of P_j tokens behind c_j that were computed before, and one token
for each of B decoding sequences with K tokens of context between them, n = P + B, takes in milliseconds

    h + max(w0 + w1*n, g0 + g1*n) + a0*[B > 0] + ad*K + ap * sum_j((c_j + P_j)^2 - c_j^2)

The linear layers are bound by reading the weights (w) or by computing (g); attention adds the reading of the KV cache
(ad) and the quadratic part of prefill (ap); h is the host's work.

Source: kernels of vLLM as measured by NVIDIA AIConfigurator (Apache-2.0), composed layer by layer and fitted. Different
software stacks differ by 10 to 25 %. Checked against NVIDIA NIM's published Llama 70B FP8 TP2: time to first token of
5,000 tokens 408 ms against 407 ms measured.

Example: 64 sequences with 1,000 tokens of context each decode on an H100 in 0.7 + 5.82 + 0.0062*64 + 0.275 +
4.31e-5*64,000 = 9.95 ms; 2,048 tokens of a fresh prompt take 0.7 - 1.80 + 0.02121*2,048 + 3.9e-7*2,048^2 = 44.0 ms.
"""

from __future__ import annotations

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


_MEASURED: Final = (
    Hardware("h100", "llama-3.1-8b", 5.82, 0.0062, -1.80, 0.02121, 0.275, 4.31e-5, 3.9e-7, 0.7, 440_000),
    # The host's work was 0.7 to 1 ms here: the middle.
    Hardware("a100", "llama-3.1-8b", 9.81, 0.0194, 2.02, 0.05487, 0.566, 8.59e-5, 1.6e-6, 0.85, 440_000),
    Hardware("h100-tp4", "llama-3.1-70b", 14.66, 0.0268, 0.571, 0.06072, 0.771, 2.71e-5, 4.9e-7, 2.0, 465_000),
    Hardware("a100-tp4", "llama-3.1-70b", 26.24, 0.0753, 23.9, 0.14486, 1.53, 6.01e-5, 2.0e-6, 2.0, 465_000),
    Hardware("h100-tp8", "llama-3.1-70b", 9.10, 0.0225, 6.43, 0.03499, 0.810, 1.34e-5, 2.5e-7, 2.0, 1_360_000),
)

HARDWARE: Final[Mapping[str, Hardware]] = MappingProxyType({hardware.label: hardware for hardware in _MEASURED})
"""Every configuration by its label."""


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
