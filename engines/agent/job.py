"""A request as the agent got it, and a refusal as it gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engines.agent.core.replica_load import OWN, Origin
from engines.engine import EngineRequest, Prompt
from fairlead.errors import Reason, UnavailableError


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the agent does not serve.

    Attributes:
        message: For people.
        reason: For machines.
    """

    message: str
    reason: Reason

    def error(self) -> UnavailableError:
        """A new error: one that is raised again and again would drag all its tracebacks along."""
        return UnavailableError(self.message, reason=self.reason)


@dataclass(frozen=True, slots=True)
class Job:
    """One request as the agent got it.

    Attributes:
        request: What the engine is to do; its id need not be unique here.
        tenant_id: Who pays; empty for the agent's own probes.
        prefill_milli_mu: The router's price of the prefill part, mMU.
        decode_milli_mu: The router's estimate of the decode part, mMU.
        weight: The tenant's weight among those that wait here, its quota in mMU per minute; 0 counts as 1.
        origin: Where it comes from and where it belongs.
        on_admitted: Called when the request goes into the engine, with the seconds it waited.
    """

    request: EngineRequest
    tenant_id: str = ""
    prefill_milli_mu: int = 0
    decode_milli_mu: int = 0
    weight: int = 1
    origin: Origin = OWN
    on_admitted: Callable[[float], None] | None = None


def prompt_bytes(prompt: Prompt) -> int:
    """Length of a prompt's text in UTF-8, without what the chat template adds."""
    return len(prompt.text.encode()) + sum(len(content.encode()) for _, content in prompt.messages)
