"""What goes into the step machine and what comes out of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Limits of the scheduler; the defaults are those of a usual engine.

    Attributes:
        sequences_max: Most sequences that run at once, 1 to `step_tokens_max`.
        step_tokens_max: Most tokens computed per step (the chunk budget), 1 or more.
        block_tokens: Tokens per KV block, 1 or more.
        piece_tokens: Tokens per shareable piece of a prompt, a multiple of `block_tokens`. Source of the default: the
            blocks of the Mooncake trace.
    """

    sequences_max: int = 256
    step_tokens_max: int = 2_048
    block_tokens: int = 16
    piece_tokens: int = 512

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or not 1 <= self.sequences_max <= self.step_tokens_max:
            raise ValueError("limits must be 1 or more, and sequences_max at most step_tokens_max")
        if self.piece_tokens < 1 or self.piece_tokens % self.block_tokens:
            raise ValueError("piece_tokens must be a multiple of block_tokens")


@dataclass(frozen=True, slots=True)
class Work:
    """One request for the machine.

    Attributes:
        request_id: Unique among the requests in the machine.
        input_tokens: Length of its prompt, 1 or more.
        output_tokens: Tokens it will produce, 1 or more.
        priority: Higher goes first.
        prefix: Ids of the prompt's leading pieces of `piece_tokens` each, front first; an id stands for the piece and
            everything before it. Empty where nothing is shared.
    """

    request_id: str
    input_tokens: int
    output_tokens: int
    priority: int = 2
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    Attributes:
        duration_s: How long it takes; its tokens exist at its end.
        produced: Requests that got one token each.
        finished: Those of `produced` for which it was the last token.
        admitted: Requests that began, or began again after a preemption, in order.
        cached: For each of `admitted`, the prompt tokens that the prefix cache had when it first began.
        preempted: Requests that were thrown out of the KV cache and wait again.
        prefill_tokens: Prompt tokens computed.
    """

    duration_s: float
    produced: tuple[str, ...]
    finished: tuple[str, ...]
    admitted: tuple[str, ...]
    cached: Mapping[str, int]
    preempted: tuple[str, ...]
    prefill_tokens: int


class EventKind(enum.Enum):
    """What happened to a request."""

    FIRST_TOKEN = "first_token"
    FINISHED = "finished"
    PREEMPTED = "preempted"


class Event(NamedTuple):
    """One thing that happened in virtual time.

    Attributes:
        time_s: When, on the machine's clock.
        kind: What. A request of one token has both its FIRST_TOKEN and its FINISHED at one time, in this order.
        request_id: To whom.
        cached_input_tokens: With FIRST_TOKEN, prompt tokens found in the prefix cache.
    """

    time_s: float
    kind: EventKind
    request_id: str
    cached_input_tokens: int
