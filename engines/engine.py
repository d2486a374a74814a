"""The Engine protocol: the one seam between a replica agent and whatever runs the model.

An adapter (Triton, simulated, OpenAI-compatible, ...) implements it; the agent owns everything else: the priority
queue, admission, probes, the progress watchdog, registration and load reports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from common.generation import Finish, Prompt, Sampling, TokenBatch
from fairlead.engine.v1 import engine_pb2

__all__ = ["DirectWay", "Engine", "EngineDescription", "EngineRequest", "Finish", "Prompt", "Sampling", "TokenBatch"]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request for an engine.

    Attributes:
        request_id: Unique on this replica.
        prompt: What to continue.
        sampling: How.
        priority: 1 batch, 2 interactive, 3 system: engines that schedule by priority use it.
        traceparent: W3C trace context to hand on, or empty.
    """

    request_id: str
    prompt: Prompt
    sampling: Sampling
    priority: int = 2
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class DirectWay:
    """How requests can be sent past the agent.

    Attributes:
        dialect: What the engine speaks.
        address: Where it is, as Replica.engine_address.
        model: The model's name there.
        triton: What of a Triton's model is to be known; None for other dialects.
    """

    dialect: engine_pb2.Dialect.ValueType
    address: str
    model: str
    triton: engine_pb2.TritonModel | None = None


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """What an engine says of itself once it serves.

    Attributes:
        engine: Label: "triton", "simulated".
        version: Its version.
        sequences_max: Most sequences at once.
        kv_capacity_tokens: KV cache, tokens.
        context_tokens: Longest prompt plus output, tokens.
        prefix_cache: Whether it keeps the prefixes of prompts it has computed; False where nobody knows.
        direct: The way past the agent; None where there is none.
    """

    engine: str
    version: str
    sequences_max: int
    kv_capacity_tokens: int
    context_tokens: int
    prefix_cache: bool = False
    direct: DirectWay | None = None


class Engine(Protocol):
    """An engine as the agent sees it. All methods run on the agent's event loop and never block it."""

    async def start(self) -> EngineDescription:
        """Starts or connects to the engine and returns once it serves.

        Called again after `stop` to replace a dead or hanging engine.

        Raises:
            fairlead.errors.UnavailableError: It did not come up; the message says why and what to do.
        """
        ...

    async def stop(self) -> None:
        """Ends the engine, by force if it does not end by itself, and frees what it held. Safe to call twice."""
        ...

    def alive(self) -> bool:
        """Whether the engine's process (or what stands for it) exists. Says nothing about whether it works."""
        ...

    @property
    def process_id(self) -> int:
        """The engine's process id, or 0 where it has none of its own."""
        ...

    def generate(self, request: EngineRequest) -> AsyncIterator[TokenBatch]:
        """Runs one request. Closing the iterator (or cancelling its task) cancels the engine's work.

        Raises:
            fairlead.errors.UnavailableError: The engine died or refused; nothing more will come.
            fairlead.errors.InvalidArgumentError: The engine cannot take this request at all.
        """
        ...

    @property
    def progress_tokens(self) -> int:
        """Tokens produced since `start`, over all requests. Standing still with work queued means a hang."""
        ...

    @property
    def kv_used_tokens(self) -> int:
        """KV cache in use, tokens, as far as the engine tells; else 0."""
        ...
