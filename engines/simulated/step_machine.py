"""One replica as a step machine: continuous batching, chunked prefill, a paged KV cache with prefix sharing. Pure.

Each step every decoding sequence gets one token; what is left of the step's token budget goes to prefill, in order of
(priority, arrival), split into chunks. A prompt's last chunk yields the request's first token. A request is admitted
when the blocks of its whole prompt are there (head of the line first: nobody overtakes within a priority), decoding
takes one more block every `block_tokens` tokens, and when none is left the running request of the lowest priority that
came last is preempted: its blocks are given back, and it computes its prompt and what it had produced again later,
less what the prefix cache still knows. This is what vLLM's scheduler does.

Example with a budget of 2,048: prompts of 3,000 and 100 tokens arrive together. Step 1 computes 2,048 tokens of the
first. Step 2 computes its other 952, which yields its first token, and all 100 of the second, which yields its first
token too. From step 3 on both decode.

Two drivers, one machine. In real time, `step` computes one step and says who got a token. In virtual time, `advance`
computes every step up to a moment: a stretch in which sequences only decode is one closed formula up to its next end,
so the work is per event and not per token. Nothing is kept per token: a decoding sequence is its first step and its
last one, contexts are one sum, and who needs a block when is a count per step modulo `block_tokens`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Final

from engines.simulated.hardware import Hardware
from engines.simulated.kv_cache import KvCache
from engines.simulated.sequence import Sequence
from engines.simulated.work import Event, EventKind, SchedulerLimits, Step, Work

# Kept free at admission so that running requests can grow for a while before somebody is preempted. Source: vLLM's
# default watermark.
_WATERMARK: Final = 0.01


_FIRST_TOKEN: Final = EventKind.FIRST_TOKEN
_FINISHED: Final = EventKind.FINISHED
_PREEMPTED: Final = EventKind.PREEMPTED


class StepMachine:
    """The scheduler and KV cache of one simulated replica.

    Args:
        hardware: Step times and KV capacity.
        limits: Scheduler limits.

    Attributes:
        now_s: The machine's clock, seconds: the end of its last step.
        slow_factor: Every step takes this many times as long, above 0.
    """

    def __init__(self, hardware: Hardware, limits: SchedulerLimits | None = None) -> None:
        self._hardware = hardware
        self._limits = limits or SchedulerLimits()
        size = self._limits.block_tokens
        self._cache = KvCache(hardware.kv_capacity_tokens // size, size, self._limits.piece_tokens)
        self._watermark = int(self._cache.blocks * _WATERMARK)
        self._sequences: dict[str, Sequence] = {}
        self._decoding: dict[str, Sequence] = {}
        self._prefilling: list[Sequence] = []  # sorted by order
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []  # heap; those who left are dropped when met
        self._ends: list[tuple[int, int, Sequence]] = []  # heap of (last step, join, sequence), likewise
        self._arrivals = 0
        self._joins = 0
        self._steps = 0
        self._context = 0  # computed tokens of all decoding sequences
        self._growing = [0] * size  # decoding sequences that need a block in steps of this number modulo size
        self.now_s = 0.0
        self.slow_factor = 1.0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    @property
    def running(self) -> tuple[str, ...]:
        """Requests that hold a slot and KV blocks."""
        return (*self._decoding, *(sequence.work.request_id for sequence in self._prefilling))

    @property
    def decoding(self) -> int:
        """Sequences that decode."""
        return len(self._decoding)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._sequences) - len(self._decoding) - len(self._prefilling)

    @property
    def kv_used_tokens(self) -> int:
        """KV cache held by running requests, whole blocks, in tokens."""
        return self._cache.used_tokens

    def produced(self, request_id: str) -> int:
        """Tokens a request in the machine has produced."""
        sequence = self._sequences[request_id]
        return sequence.produced_by(self._steps)

    def cached(self, request_id: str) -> int:
        """Prompt tokens of a request in the machine that were found in the prefix cache; 0 before it is admitted."""
        return max(0, self._sequences[request_id].cached)

    def progress(self) -> Iterator[tuple[str, int]]:
        """Requests that have begun to answer, also those that were preempted, and the tokens each has produced."""
        for request_id, sequence in self._sequences.items():
            if produced := sequence.produced_by(self._steps):
                yield request_id, produced

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
        if self._cache.blocks_for(work.input_tokens + work.output_tokens - 1) > self._cache.blocks:
            raise ValueError(f"request {work.request_id!r} is larger than the KV cache")
        self._arrivals += 1
        sequence = Sequence(work, (-work.priority, self._arrivals), work.input_tokens)
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
        """Computes one step, and moves the clock by it; None when there is nothing to do."""
        if not self._sequences:
            return None
        preempted = self._make_room()
        decoders = list(self._decoding)
        began_s = self.now_s
        joined, finished, admitted, prefill_tokens = self._step()
        return Step(
            self.now_s - began_s,
            produced=(*decoders, *(sequence.work.request_id for sequence in joined)),
            finished=tuple(sequence.work.request_id for sequence in finished),
            admitted=tuple(sequence.work.request_id for sequence in admitted),
            cached={sequence.work.request_id: sequence.cached for sequence in admitted},
            preempted=tuple(sequence.work.request_id for sequence in preempted),
            prefill_tokens=prefill_tokens,
        )

    def next_event_s(self) -> float | None:
        """When `advance` is worth calling next if nothing is added or cancelled until then; None when idle.

        While sequences only decode, the next end of a request (or when room has to be made for a step); else the
        very next moment, at which `advance` computes one step. The events of a step are known when it begins.
        """
        if not self._sequences:
            return None
        steps = self._stretch_steps()
        return self.now_s + self._stretch_s(steps) if steps else math.nextafter(self.now_s, math.inf)

    def advance(self, until_s: float) -> list[Event]:
        """Computes every step that begins before `until_s`; an idle machine's clock is set to it.

        The last step may end after `until_s`: its events carry their own times, and whoever is added now joins after
        it, as in a real engine.

        Args:
            until_s: On the machine's clock.

        Returns:
            What happened, in order.
        """
        events: list[Event] = []
        while self._sequences and self.now_s < until_s:
            steps = self._stretch_steps()
            if steps:
                self._decode_stretch(self._steps_before(until_s, steps), events)
                continue
            for victim in self._make_room():
                events.append(Event(self.now_s, _PREEMPTED, victim.work.request_id, 0))
            joined, finished, _, _ = self._step()
            for sequence in joined:
                if sequence.produced == 1:
                    events.append(Event(self.now_s, _FIRST_TOKEN, sequence.work.request_id, sequence.cached))
            events += [Event(self.now_s, _FINISHED, sequence.work.request_id, 0) for sequence in finished]
        if not self._sequences and self.now_s < until_s:
            self.now_s = until_s
        return events

    # --- one step

    def _make_room(self) -> list[Sequence]:
        """Preempts until every decoding sequence can write its next token."""
        preempted = []
        while self._growing[self._steps % self._limits.block_tokens] > self._cache.available:
            victim = max((*self._decoding.values(), *self._prefilling), key=lambda sequence: sequence.order)
            self._preempt(victim)
            preempted.append(victim)
        return preempted

    def _step(self) -> tuple[list[Sequence], list[Sequence], list[Sequence], int]:
        """Computes a step that has room; returns who joined decoding, who finished, who was admitted, and P."""
        decoding = len(self._decoding)
        self._cache.grow(self._growing[self._steps % self._limits.block_tokens])
        self._context += decoding
        context = self._context
        chunks, admitted = self._prefill(self._limits.step_tokens_max - decoding)
        self._steps += 1
        joined: list[Sequence] = []
        prefill_tokens, squares = 0, 0
        for sequence, tokens in chunks:
            squares += tokens * (2 * sequence.computed + tokens)
            prefill_tokens += tokens
            self._compute(sequence, tokens)
            if sequence.computed == sequence.target:
                self._join(sequence)
                joined.append(sequence)
        finished = self._finish()
        self.now_s += self.slow_factor * self._hardware.step_s(
            prefill_tokens=prefill_tokens, prefill_squares=squares, sequences=decoding, context_tokens=context
        )
        return joined, finished, admitted, prefill_tokens

    def _prefill(self, budget: int) -> tuple[list[tuple[Sequence, int]], list[Sequence]]:
        """Deals the budget out in order; returns chunks of (sequence, tokens) and who was admitted."""
        chunks: list[tuple[Sequence, int]] = []
        admitted: list[Sequence] = []
        index = 0
        while budget > 0:
            head = self._waiting_head()
            current = self._prefilling[index] if index < len(self._prefilling) else None
            if head is not None and (current is None or head.order < current.order) and self._admit(head, index):
                admitted.append(head)
                current = head
            if current is None:
                break
            tokens = min(budget, current.target - current.computed)
            chunks.append((current, tokens))
            budget -= tokens
            index += 1
        return chunks, admitted

    def _waiting_head(self) -> Sequence | None:
        while self._waiting:
            sequence = self._waiting[0][1]
            if not sequence.gone and sequence.holding is None:
                return sequence
            heapq.heappop(self._waiting)
        return None

    def _admit(self, sequence: Sequence, index: int) -> bool:
        """Gives the head of the line a slot and its blocks, if they are free."""
        running = len(self._decoding) + len(self._prefilling)
        if running >= self._limits.sequences_max:
            return False
        room = self._cache.admit(sequence.target, sequence.work.prefix, self._watermark if running else 0)
        if room is None:
            return False
        heapq.heappop(self._waiting)
        sequence.holding, sequence.computed = room
        if sequence.cached < 0:  # later it finds what it computed itself
            sequence.cached = sequence.computed
        self._prefilling.insert(index, sequence)
        return True

    def _compute(self, sequence: Sequence, tokens: int) -> None:
        """Counts computed prompt tokens, and makes whole pieces of the prompt known."""
        before, sequence.computed = sequence.computed, sequence.computed + tokens
        prefix = sequence.work.prefix
        if prefix and sequence.holding is not None:
            piece = self._limits.piece_tokens
            self._cache.share(sequence.holding, prefix[before // piece : sequence.computed // piece])

    def _join(self, sequence: Sequence) -> None:
        """A prompt is computed: its first (or next) token is out, and it decodes from the next step on."""
        self._prefilling.remove(sequence)
        sequence.produced += 1
        sequence.join = self._steps
        self._decoding[sequence.work.request_id] = sequence
        self._context += sequence.computed
        self._growing[(self._steps - sequence.computed) % self._limits.block_tokens] += 1
        last_step = self._steps + sequence.work.output_tokens - sequence.produced
        self._joins += 1
        heapq.heappush(self._ends, (last_step, self._joins, sequence))

    def _finish(self) -> list[Sequence]:
        """Removes everybody whose last token is out, in the order in which they joined."""
        finished = []
        while self._ends and (self._ends[0][0] <= self._steps or not self._ends[0][2].ends_after(self._ends[0][0])):
            last_step, _, sequence = heapq.heappop(self._ends)
            if sequence.ends_after(last_step):
                finished.append(sequence)
                self._remove(sequence)
        return finished

    # --- stretches of steps in which sequences only decode

    def _stretch_steps(self) -> int:
        """Steps up to the next end in which nothing but decoding happens and room is there; 0 when there are none."""
        if self._prefilling or not self._decoding:
            return 0
        head = self._waiting_head()
        if head is not None and self._admittable(head):
            return 0
        while not self._ends[0][2].ends_after(self._ends[0][0]):
            heapq.heappop(self._ends)
        return self._steps_with_room(self._ends[0][0] - self._steps)

    def _admittable(self, sequence: Sequence) -> bool:
        running = len(self._decoding) + len(self._prefilling)
        if running >= self._limits.sequences_max:
            return False
        return self._cache.fits(sequence.target, sequence.work.prefix, self._watermark)

    def _steps_with_room(self, steps: int) -> int:
        """How many of the next `steps` find the blocks they need."""
        size, available = self._limits.block_tokens, self._cache.available
        whole_rounds = steps // size
        if (whole_rounds + 1) * len(self._decoding) <= available:
            return steps
        if len(self._decoding):
            whole_rounds = min(whole_rounds, available // len(self._decoding))
        done, available = whole_rounds * size, available - whole_rounds * len(self._decoding)
        while done < steps:
            available -= self._growing[(self._steps + done) % size]
            if available < 0:
                break
            done += 1
        return done

    def _stretch_s(self, steps: int) -> float:
        return self.slow_factor * self._hardware.decode_s(len(self._decoding), self._context, steps)

    def _steps_before(self, until_s: float, steps: int) -> int:
        """How many of the next `steps` begin before `until_s`; at least 1."""
        if self.now_s + self._stretch_s(steps) <= until_s:
            return steps
        low, high = 1, steps  # the answer is the least count after which the clock is at or past until_s
        while low < high:
            middle = (low + high) // 2
            if self.now_s + self._stretch_s(middle) >= until_s:
                high = middle
            else:
                low = middle + 1
        return low

    def _decode_stretch(self, steps: int, events: list[Event]) -> None:
        size = self._limits.block_tokens
        self.now_s += self._stretch_s(steps)
        whole_rounds, rest = divmod(steps, size)
        blocks = whole_rounds * len(self._decoding)
        blocks += sum(self._growing[(self._steps + index) % size] for index in range(rest))
        self._cache.grow(blocks)
        self._context += steps * len(self._decoding)
        self._steps += steps
        for sequence in self._finish():
            events.append(Event(self.now_s, _FINISHED, sequence.work.request_id, 0))

    # --- leaving

    def _preempt(self, sequence: Sequence) -> None:
        produced = self.produced(sequence.work.request_id)
        self._release(sequence)
        sequence.computed, sequence.produced = 0, produced
        sequence.target = sequence.work.input_tokens + produced
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.work.request_id]
        sequence.gone = True
        if sequence.holding is not None:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Takes slot and blocks away."""
        assert sequence.holding is not None
        grown = 0
        if sequence.join >= 0:
            del self._decoding[sequence.work.request_id]
            computed = sequence.computed + self._steps - sequence.join
            grown = self._cache.blocks_for(computed) - self._cache.blocks_for(sequence.computed)
            self._context -= computed
            self._growing[(sequence.join - sequence.computed) % self._limits.block_tokens] -= 1
            sequence.join = -1
        else:
            self._prefilling.remove(sequence)
        self._cache.release(sequence.holding, grown)
        sequence.holding = None
