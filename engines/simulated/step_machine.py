"""One replica as a step machine: continuous batching, chunked prefill, a paged KV cache. Pure; time is only an output.

Each step every decoding sequence gets one token; what is left of the step's token budget goes to prefill, in order of
(priority, arrival), split into chunks. A prompt's last chunk yields the request's first token. The KV cache is counted
in blocks: a request is admitted when the blocks of its whole prompt are free (head of the line first: nobody overtakes
within a priority), decoding takes one more block every `block_tokens` tokens, and when none is free the running request
of the lowest priority that came last is preempted: its blocks are freed, and it computes its prompt and what it had
produced again later. This is what vLLM's scheduler does with prefix caching off.

Example with a budget of 2,048: prompts of 3,000 and 100 tokens arrive together. Step 1 computes 2,048 tokens of the
first. Step 2 computes its other 952, which yields its first token, and all 100 of the second, which yields its first
token too. From step 3 on both decode.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

from engines.simulated.hardware import Hardware

# Kept free at admission so that running requests can grow for a while before somebody is preempted. Source: vLLM's
# default watermark.
_WATERMARK: Final = 0.01


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Limits of the scheduler; the defaults are those of a usual engine.

    Attributes:
        sequences_max: Most sequences that run at once, 1 to `step_tokens_max`.
        step_tokens_max: Most tokens computed per step (the chunk budget), 1 or more.
        block_tokens: Tokens per KV block, 1 or more.
    """

    sequences_max: int = 256
    step_tokens_max: int = 2_048
    block_tokens: int = 16

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or not 1 <= self.sequences_max <= self.step_tokens_max:
            raise ValueError("limits must be 1 or more, and sequences_max at most step_tokens_max")


@dataclass(frozen=True, slots=True)
class Work:
    """One request for the machine.

    Attributes:
        request_id: Unique among the requests in the machine.
        input_tokens: Length of its prompt, 1 or more.
        output_tokens: Tokens it will produce, 1 or more.
        priority: Higher goes first.
    """

    request_id: str
    input_tokens: int
    output_tokens: int
    priority: int = 2


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    Attributes:
        duration_s: How long it takes; its tokens exist at its end.
        produced: Requests that got one token each.
        finished: Those of `produced` for which it was the last token.
        admitted: Requests that began, or began again after a preemption, in order.
        preempted: Requests that were thrown out of the KV cache and wait again.
        prefill_tokens: Prompt tokens computed.
    """

    duration_s: float
    produced: tuple[str, ...]
    finished: tuple[str, ...]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]
    prefill_tokens: int


@dataclass(slots=True, eq=False)
class _Sequence:
    work: Work
    order: tuple[int, int]  # (-priority, arrival): lower goes first
    prefill_target: int  # tokens to compute before the next token comes out of prefill
    computed: int = 0
    produced: int = 0
    blocks: int = 0
    running: bool = field(default=False)

    @property
    def decoding(self) -> bool:
        return self.computed >= self.prefill_target


class StepMachine:
    """The scheduler and KV cache of one simulated replica.

    Args:
        hardware: Step times and KV capacity.
        limits: Scheduler limits.
    """

    def __init__(self, hardware: Hardware, limits: SchedulerLimits | None = None) -> None:
        self._hardware = hardware
        self._limits = limits or SchedulerLimits()
        self._blocks_total = hardware.kv_capacity_tokens // self._limits.block_tokens
        self._blocks_free = self._blocks_total
        self._watermark = int(self._blocks_total * _WATERMARK)
        self._sequences: dict[str, _Sequence] = {}
        self._decoding: dict[str, _Sequence] = {}
        self._prefilling: list[_Sequence] = []  # sorted by order
        self._waiting: list[tuple[tuple[int, int], _Sequence]] = []  # heap; cancelled ones are dropped when met
        self._arrivals = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    @property
    def running(self) -> tuple[str, ...]:
        """Requests that hold a slot and KV blocks."""
        return (*self._decoding, *(sequence.work.request_id for sequence in self._prefilling))

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._sequences) - len(self._decoding) - len(self._prefilling)

    @property
    def kv_used_tokens(self) -> int:
        """KV cache held, whole blocks, in tokens."""
        return (self._blocks_total - self._blocks_free) * self._limits.block_tokens

    def add(self, work: Work) -> None:
        """Takes a request; it joins at the next step.

        Raises:
            ValueError: The id is in use, a length is below 1, or the request alone is larger than the KV cache.
        """
        if work.request_id in self._sequences:
            raise ValueError(f"request {work.request_id!r} is already in the machine")
        if work.input_tokens < 1 or work.output_tokens < 1:
            raise ValueError("input_tokens and output_tokens must be 1 or more")
        # The last token produced is never computed, so it takes no room.
        if self._blocks_for(work.input_tokens + work.output_tokens - 1) > self._blocks_total:
            raise ValueError(f"request {work.request_id!r} is larger than the KV cache")
        self._arrivals += 1
        sequence = _Sequence(work, (-work.priority, self._arrivals), prefill_target=work.input_tokens)
        self._sequences[work.request_id] = sequence
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def cancel(self, request_id: str) -> bool:
        """Ends a request and frees what it held; False when it is not (or no longer) in the machine."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._remove(sequence)
        return True

    def step(self) -> Step | None:
        """Computes one step; None when there is nothing to do."""
        if not self._sequences:
            return None
        preempted = self._make_room_for_decoding()
        produced, context_tokens = self._decode()
        decoding = len(produced)
        chunks, admitted = self._prefill(self._limits.step_tokens_max - decoding)
        prefill_tokens, squares = 0, 0
        for sequence, tokens in chunks:
            squares += tokens * (2 * sequence.computed + tokens)
            sequence.computed += tokens
            prefill_tokens += tokens
            if sequence.decoding:
                self._prefilling.remove(sequence)
                self._decoding[sequence.work.request_id] = sequence
                produced.append(sequence)
        for sequence in produced:
            sequence.produced += 1
        finished = [sequence for sequence in produced if sequence.produced == sequence.work.output_tokens]
        for sequence in finished:
            self._remove(sequence)
        duration_s = self._hardware.step_s(
            prefill_tokens=prefill_tokens, prefill_squares=squares, sequences=decoding, context_tokens=context_tokens
        )
        return Step(
            duration_s,
            produced=tuple(sequence.work.request_id for sequence in produced),
            finished=tuple(sequence.work.request_id for sequence in finished),
            admitted=tuple(admitted),
            preempted=tuple(preempted),
            prefill_tokens=prefill_tokens,
        )

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._limits.block_tokens)

    def _make_room_for_decoding(self) -> list[str]:
        """Preempts until every decoding sequence can write its next token."""
        preempted = []
        size = self._limits.block_tokens
        while sum(sequence.computed == sequence.blocks * size for sequence in self._decoding.values()) > (
            self._blocks_free
        ):
            victim = max((*self._decoding.values(), *self._prefilling), key=lambda sequence: sequence.order)
            self._preempt(victim)
            preempted.append(victim.work.request_id)
        return preempted

    def _decode(self) -> tuple[list[_Sequence], int]:
        """Computes one token for each decoding sequence; returns them and the sum of their contexts."""
        size, context_tokens = self._limits.block_tokens, 0
        decoding = list(self._decoding.values())
        for sequence in decoding:
            if sequence.computed == sequence.blocks * size:
                sequence.blocks += 1
                self._blocks_free -= 1
            sequence.computed += 1
            context_tokens += sequence.computed
        return decoding, context_tokens

    def _prefill(self, budget: int) -> tuple[list[tuple[_Sequence, int]], list[str]]:
        """Deals the budget out in order; returns chunks of (sequence, tokens) and who was admitted."""
        chunks: list[tuple[_Sequence, int]] = []
        admitted: list[str] = []
        index = 0
        while budget > 0:
            head = self._waiting_head()
            current = self._prefilling[index] if index < len(self._prefilling) else None
            if head is not None and (current is None or head.order < current.order) and self._admit(head, index):
                admitted.append(head.work.request_id)
                current = head
            if current is None:
                break
            tokens = min(budget, current.prefill_target - current.computed)
            chunks.append((current, tokens))
            budget -= tokens
            index += 1
        return chunks, admitted

    def _waiting_head(self) -> _Sequence | None:
        while self._waiting:
            _, sequence = self._waiting[0]
            if not sequence.running and self._sequences.get(sequence.work.request_id) is sequence:
                return sequence
            heapq.heappop(self._waiting)
        return None

    def _admit(self, sequence: _Sequence, index: int) -> bool:
        """Gives the head of the line a slot and its blocks, if they are free."""
        running = len(self._decoding) + len(self._prefilling)
        blocks = self._blocks_for(sequence.prefill_target)
        reserve = self._watermark if running else 0
        if running >= self._limits.sequences_max or blocks + reserve > self._blocks_free:
            return False
        heapq.heappop(self._waiting)
        self._blocks_free -= blocks
        sequence.blocks = blocks
        sequence.running = True
        self._prefilling.insert(index, sequence)
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self._release(sequence)
        sequence.computed = 0
        sequence.prefill_target = sequence.work.input_tokens + sequence.produced
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def _remove(self, sequence: _Sequence) -> None:
        del self._sequences[sequence.work.request_id]
        if sequence.running:
            self._release(sequence)

    def _release(self, sequence: _Sequence) -> None:
        """Takes slot and blocks away."""
        if self._decoding.pop(sequence.work.request_id, None) is None:
            self._prefilling.remove(sequence)
        self._blocks_free += sequence.blocks
        sequence.blocks = 0
        sequence.running = False
