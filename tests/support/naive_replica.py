"""The step machine's scheduler as anybody would write it first: every request, every token, one by one.

Slow and plain on purpose: it keeps each request's computed tokens, counts its blocks anew each time, and evaluates the
step-time formula term by term, so that the real machine can be compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.simulated.hardware import Hardware
from engines.simulated.work import SchedulerLimits, Step, Work

WATERMARK = 0.01


@dataclass(eq=False)
class NaiveRequest:
    """One request: how far it is and what it holds."""

    work: Work
    arrival: int
    state: str = "waiting"  # then "prefill", then "decode"; "waiting" again after a preemption
    target: int = 0
    computed: int = 0
    produced: int = 0
    cached: int | None = None
    shared: list[int] = field(default_factory=list)

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first."""
        return (-self.work.priority, self.arrival)


class NaiveReplica:
    """See the module.

    Args:
        hardware: Step times and KV capacity.
        limits: Scheduler limits.
    """

    def __init__(self, hardware: Hardware, limits: SchedulerLimits) -> None:
        self.hardware = hardware
        self.limits = limits
        self.blocks = hardware.kv_capacity_tokens // limits.block_tokens
        self.requests: dict[str, NaiveRequest] = {}
        self.decoding: list[NaiveRequest] = []
        self.references: dict[int, int] = {}  # of pieces that are known
        self.idle: list[int] = []  # longest idle first
        self.arrivals = 0
        self.slow_factor = 1.0

    def add(self, work: Work) -> None:
        """Takes a request."""
        self.arrivals += 1
        self.requests[work.request_id] = NaiveRequest(work, self.arrivals, target=work.input_tokens)

    def cancel(self, request_id: str) -> bool:
        """Drops a request."""
        request = self.requests.pop(request_id, None)
        if request is not None:
            self._let_go(request)
        return request is not None

    def used_blocks(self) -> int:
        """Blocks of everybody that runs; a shared piece counts once."""
        piece_blocks = self.limits.piece_tokens // self.limits.block_tokens
        in_use = sum(references > 0 for references in self.references.values())
        return in_use * piece_blocks + sum(self._private(request) for request in self._in("prefill", "decode"))

    def step(self) -> Step | None:
        """One step."""
        if not self.requests:
            return None
        preempted = []
        while self._blocks_wanted() > self._available():
            victim = max(self._in("prefill", "decode"), key=lambda request: request.order)
            self._let_go(victim)
            victim.state, victim.target = "waiting", victim.work.input_tokens + victim.produced
            victim.computed = 0
            preempted.append(victim.work.request_id)
        produced = []
        decoders = list(self.decoding)
        for request in decoders:
            if request.computed % self.limits.block_tokens == 0:
                self._evict(1)
            request.computed += 1
            request.produced += 1
            produced.append(request)
        context = sum(request.computed for request in decoders)
        chunks, admitted = self._deal(self.limits.step_tokens_max - len(decoders))
        attention = 0.0
        for request, tokens in chunks:
            attention += (request.computed + tokens) ** 2 - request.computed**2
            for _ in range(tokens):
                self._compute_one(request)
            if request.computed == request.target:
                request.state = "decode"
                request.produced += 1
                self.decoding.append(request)
                produced.append(request)
        finished = [each for each in self.decoding if each.produced == each.work.output_tokens]
        for request in finished:
            self.cancel(request.work.request_id)
        prefill = sum(tokens for _, tokens in chunks)
        return Step(
            self.slow_factor * self._ms(prefill, attention, len(decoders), context) / 1000,
            produced=_ids(produced),
            finished=_ids(finished),
            admitted=_ids(admitted),
            cached={request.work.request_id: request.cached or 0 for request in admitted},
            preempted=tuple(preempted),
            prefill_tokens=prefill,
        )

    def _ms(self, prefill: int, attention: float, decoders: int, context: int) -> float:
        made_of, tokens = self.hardware, prefill + decoders
        linear = max(made_of.w0 + made_of.w1 * tokens, made_of.g0 + made_of.g1 * tokens)
        decode = made_of.a0 + made_of.ad * context if decoders else 0.0
        return made_of.h + linear + decode + made_of.ap * attention

    def _in(self, *states: str) -> list[NaiveRequest]:
        return [request for request in self.requests.values() if request.state in states]

    def _private(self, request: NaiveRequest) -> int:
        """Blocks of its own: it has room for its whole prompt from the start."""
        size = self.limits.block_tokens
        tokens = request.target if request.state == "prefill" else request.computed
        return -(-tokens // size) - len(request.shared) * (self.limits.piece_tokens // size)

    def _available(self) -> int:
        return self.blocks - self.used_blocks()

    def _blocks_wanted(self) -> int:
        return sum(request.computed % self.limits.block_tokens == 0 for request in self.decoding)

    def _evict(self, blocks: int) -> None:
        """Forgets idle pieces until so many blocks are really free."""
        piece_blocks = self.limits.piece_tokens // self.limits.block_tokens
        while self._available() - len(self.idle) * piece_blocks < blocks:
            del self.references[self.idle.pop(0)]

    def _deal(self, budget: int) -> tuple[list[tuple[NaiveRequest, int]], list[NaiveRequest]]:
        chunks, admitted = [], []
        served: set[str] = set()
        while budget > 0:
            line = [request for request in self._in("prefill", "waiting") if request.work.request_id not in served]
            waiting = sorted((request for request in line if request.state == "waiting"), key=lambda each: each.order)
            running = sorted((request for request in line if request.state == "prefill"), key=lambda each: each.order)
            if waiting and (not running or waiting[0].order < running[0].order) and self._admit(waiting[0]):
                admitted.append(waiting[0])
                running.insert(0, waiting[0])
            if not running:
                break
            tokens = min(budget, running[0].target - running[0].computed)
            chunks.append((running[0], tokens))
            served.add(running[0].work.request_id)
            budget -= tokens
        return chunks, admitted

    def _admit(self, request: NaiveRequest) -> bool:
        inside = len(self._in("prefill", "decode"))
        if inside >= self.limits.sequences_max:
            return False
        matched: list[int] = []
        for index, piece in enumerate(request.work.prefix):
            if piece not in self.references or (index + 1) * self.limits.piece_tokens >= request.target:
                break
            matched.append(piece)
        size = self.limits.block_tokens
        fresh = -(-request.target // size) - len(matched) * (self.limits.piece_tokens // size)
        revived = [piece for piece in matched if piece in self.idle]
        reserve = int(self.blocks * WATERMARK) if inside else 0
        room = self._available() - len(revived) * (self.limits.piece_tokens // size)
        if fresh + reserve > room:
            return False
        for piece in matched:
            self.references[piece] += 1
        self.idle = [piece for piece in self.idle if piece not in revived]
        self._evict(fresh)
        request.state, request.shared = "prefill", matched
        request.computed = len(matched) * self.limits.piece_tokens
        request.cached = request.computed if request.cached is None else request.cached
        return True

    def _compute_one(self, request: NaiveRequest) -> None:
        request.computed += 1
        number, rest = divmod(request.computed, self.limits.piece_tokens)
        if rest == 0 and number <= len(request.work.prefix):
            piece = request.work.prefix[number - 1]
            if piece not in self.references:
                self.references[piece] = 1
                request.shared.append(piece)

    def _let_go(self, request: NaiveRequest) -> None:
        for piece in reversed(request.shared):
            self.references[piece] -= 1
            if self.references[piece] == 0:
                self.idle.append(piece)
        request.shared = []
        if request in self.decoding:
            self.decoding.remove(request)


def _ids(requests: list[NaiveRequest]) -> tuple[str, ...]:
    return tuple(request.work.request_id for request in requests)
