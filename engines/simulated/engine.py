"""The step machine in real time, behind the Engine protocol.

The machine has a clock of its own, and everything happens by it: a request joins `INGEST_S` after it arrived, a step
begins when the one before it ended, a token is seen `TOKEN_S` after its step. The event loop only has to look often
enough: however late it wakes up, it computes what was due in the order in which it was due, so a busy machine does not
slow the simulated replica down and does not change what it does. A process that stood still for long does not catch
up: a paused GPU would not either.

One timer, set for the next moment at which something is seen, drives it all; it is not set while there is nothing to
do. Nothing is computed further ahead than the step that runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from common.logs import get_logger
from engines.engine import EngineDescription, EngineRequest, TokenBatch
from engines.simulated.faults import Faults
from engines.simulated.hardware import LLAMA_3_1_CONTEXT_TOKENS, Hardware
from engines.simulated.host import FINISH_S, INGEST_S, TOKEN_S
from engines.simulated.pace import Pace
from engines.simulated.prefix import prefix_ids
from engines.simulated.rehearsal import rehearse
from engines.simulated.step_machine import StepMachine
from engines.simulated.text import OutputText, render
from engines.simulated.work import SchedulerLimits, Step, Work
from fairlead.errors import InvalidArgumentError, Reason, UnavailableError
from model_units.calibration.load import LoadResult, LoadSpec

log = get_logger(__name__)

VERSION: Final = "2"
"""Version of the simulation, as the engine says of itself."""

BYTES_PER_TOKEN: Final = 4
"""Bytes of text per prompt token; about what English takes in current vocabularies."""

PIECE_TOKENS: Final = 64
"""Prompts share KV cache in pieces of so many tokens: coarser than the 16 of vLLM, so that naming the pieces of a
prompt of 10,000 tokens takes half a millisecond."""

_STEPS_PER_WAKEUP_MAX: Final = 64
_LAG_MAX_S: Final = 0.5
_GARBAGE: Final = "\ufffd\x00"


@dataclass(slots=True, eq=False)
class _Stream:
    work: Work
    output: OutputText
    produced: int = 0
    taken: int = 0
    cached: int = 0
    last_s: float = 0.0  # the end of the step of its latest token
    error: UnavailableError | None = None
    waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def look_again(self) -> None:
        self.waiter = asyncio.get_running_loop().create_future()
        await self.waiter


class SimulatedEngine:
    """One simulated replica.

    Args:
        hardware: Step times and KV capacity.
        limits: Scheduler limits; those of a usual engine when left out.
        cold_start_s: How long `start` takes, as loading weights and capturing graphs would.
        context_tokens: Longest prompt plus output, tokens.
    """

    def __init__(
        self,
        hardware: Hardware,
        limits: SchedulerLimits | None = None,
        *,
        cold_start_s: float = 0.0,
        context_tokens: int = LLAMA_3_1_CONTEXT_TOKENS,
    ) -> None:
        self._hardware = hardware
        self._limits = limits or SchedulerLimits(piece_tokens=PIECE_TOKENS)
        self._cold_start_s = cold_start_s
        whole_blocks_tokens = hardware.kv_capacity_tokens // self._limits.block_tokens * self._limits.block_tokens
        self._context_tokens = min(context_tokens, whole_blocks_tokens)
        self._machine = StepMachine(hardware, self._limits)
        self._streams: dict[str, _Stream] = {}
        self._faults = Faults()
        self._pace: Pace | None = None  # None: not started
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0  # what the timer is set for
        self._arriving: deque[tuple[float, _Stream]] = deque()  # (when it joins, who), in order
        self._pending: Step | None = None  # computed, its tokens not seen yet
        self._altered = asyncio.Event()  # faults were set, or the engine ended
        self._progress_tokens = 0

    @property
    def faults(self) -> Faults:
        """The faults in force."""
        return self._faults

    def set_faults(self, faults: Faults) -> None:
        """Replaces the faults; what was frozen goes on when its fault is gone."""
        self._faults = faults
        self._machine.slow_factor = faults.slow_factor
        if self._pace is not None and faults.hang:
            self._pace.stop()
        elif self._pace is not None and not self._pace.running:
            self._pace.go()
        self._set_timer()
        self._altered.set()
        for stream in self._streams.values():
            stream.wake()

    async def start(self) -> EngineDescription:
        """See Engine. A restart heals every fault but the crash marker, which is the prompts' fault."""
        await self.stop()
        self._faults = self._faults.after_restart()
        await asyncio.sleep(self._cold_start_s)
        self._machine = StepMachine(self._hardware, self._limits)
        self._machine.slow_factor = self._faults.slow_factor
        self._progress_tokens = 0
        self._pace = Pace(asyncio.get_running_loop().time)
        return EngineDescription(
            engine="simulated",
            version=VERSION,
            sequences_max=self._limits.sequences_max,
            kv_capacity_tokens=self._hardware.kv_capacity_tokens,
            context_tokens=self._context_tokens,
            prefix_cache=True,
        )

    async def stop(self) -> None:
        """See Engine."""
        self._die("the engine was stopped")

    def alive(self) -> bool:
        """See Engine."""
        return self._pace is not None

    @property
    def process_id(self) -> int:
        """See Engine: it runs inside the agent."""
        return 0

    @property
    def progress_tokens(self) -> int:
        """See Engine."""
        return self._progress_tokens

    @property
    def kv_used_tokens(self) -> int:
        """See Engine."""
        return self._machine.kv_used_tokens

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenBatch]:
        """See Engine. The end of the answer is a batch of its own."""
        stream = self._open(request)
        output, tokens = stream.output, stream.output.tokens
        try:
            while stream.taken < tokens:
                freeze = self._faults.freeze_after_tokens
                count = (min(stream.produced, freeze) if freeze else stream.produced) - stream.taken
                if stream.error is not None:
                    raise stream.error
                if count <= 0:
                    await stream.look_again()
                    continue
                stream.taken += count
                yield TokenBatch(_GARBAGE * count if self._faults.garbage else output.take(count), count)
            await self._until(stream.last_s + FINISH_S)
            if stream.error is not None:
                raise stream.error
            yield TokenBatch("", 0, output.finish, stream.work.input_tokens, stream.cached)
        finally:
            if self._streams.get(request.request_id) is stream:
                del self._streams[request.request_id]
                self._machine.cancel(request.request_id)

    async def rehearse(self, load: LoadSpec) -> LoadResult:
        """Puts a load on this engine in virtual time, with its faults: it slows when the engine is slow, waits while
        the engine hangs and fails when it does.

        Args:
            load: The load.

        Raises:
            UnavailableError: The engine does not run, ended meanwhile, or is out of memory.
            InvalidArgumentError: A request is larger than the KV cache.
        """
        engine, result = self._pace, None
        while True:
            self._altered.clear()
            if engine is None or engine is not self._pace:
                raise UnavailableError("the engine is not running", reason=Reason.ENGINE_FAILED)
            if self._faults.out_of_memory:
                raise UnavailableError("the engine is out of memory", reason=Reason.ENGINE_FAILED)
            freeze = self._faults.freeze_after_tokens
            if self._faults.hang or (freeze and freeze < max(made for _, made in load.lengths)):
                await self._altered.wait()
            elif result is None:
                slow_factor = self._faults.slow_factor
                try:
                    result = await asyncio.to_thread(
                        rehearse, self._hardware, load, self._limits, slow_factor=slow_factor
                    )
                except ValueError as error:
                    raise InvalidArgumentError(f"load: {error}", field="load") from error
            else:
                self._progress_tokens += result.output_tokens
                return result

    def _open(self, request: EngineRequest) -> _Stream:
        """Takes a request in; it joins the others once its prompt is ingested."""
        text = render(request.prompt)
        pace = self._refuse_if_broken(text)
        prompt = text.encode("utf-8", "surrogatepass")
        input_tokens = max(1, round(len(prompt) / BYTES_PER_TOKEN))
        room = self._context_tokens - input_tokens
        if room < 1:
            raise InvalidArgumentError(
                f"the prompt has about {input_tokens} tokens; the model takes {self._context_tokens - 1}",
                reason=Reason.PROMPT_TOO_LONG,
                field="prompt",
            )
        if request.request_id in self._streams:
            raise InvalidArgumentError("a request with this id is running", reason=Reason.REQUEST_IN_FLIGHT)
        sampling = request.sampling
        output = OutputText(
            text,
            max_tokens=min(sampling.max_tokens, room),
            seed=sampling.seed or 0,
            ignore_end_token=sampling.ignore_end_token,
            stop=sampling.stop,
        )
        prefix = prefix_ids(prompt, self._limits.piece_tokens * BYTES_PER_TOKEN)
        work = Work(request.request_id, input_tokens, output.tokens, request.priority, prefix)
        stream = self._streams[request.request_id] = _Stream(work, output)
        self._arriving.append((self._now_s(pace) + INGEST_S, stream))
        self._set_timer()
        return stream

    def _refuse_if_broken(self, text: str) -> Pace:
        if self._pace is None:
            raise UnavailableError("the engine is not running", reason=Reason.ENGINE_FAILED)
        marker = self._faults.crash_marker
        if marker and marker in text:
            self._die("the engine died of a request")
            raise UnavailableError("the engine died of this request", reason=Reason.ENGINE_FAILED)
        if self._faults.out_of_memory:
            raise UnavailableError("the engine is out of memory", reason=Reason.ENGINE_FAILED)
        return self._pace

    def _now_s(self, pace: Pace) -> float:
        """The replica's time. What it is late by beyond the limit never was."""
        if (self._pending is not None or self._arriving) and pace.now_s - self._due_s > _LAG_MAX_S:
            pace.set_back(self._due_s)
        return pace.now_s

    async def _until(self, time_s: float) -> None:
        """Sleeps until this moment of the replica's time; not at all when it has passed."""
        if self._pace is not None and (left_s := time_s - self._pace.now_s) > 0:
            await asyncio.sleep(left_s)

    def _set_timer(self) -> None:
        """Sets the one timer for what comes next, or takes it away when nothing does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pace is None or not self._pace.running:
            return
        if self._pending is not None:
            self._due_s = self._machine.now_s + TOKEN_S
        elif self._arriving:
            self._due_s = self._arriving[0][0]
        else:
            return
        self._timer = asyncio.get_running_loop().call_at(self._pace.real_at(self._due_s), self._look)

    def _look(self) -> None:
        """The timer rang."""
        self._timer = None
        try:
            self._catch_up()
        except Exception as error:  # what the end of an engine's process looks like from outside
            log.error("simulated engine failed", exc_info=error)
            self._die("the engine failed")
        self._set_timer()

    def _catch_up(self) -> None:
        """Computes and tells everything that was due, in the order in which it was due."""
        assert self._pace is not None
        now_s = max(self._now_s(self._pace), self._due_s)  # a timer may ring a rounding error early
        machine, arriving = self._machine, self._arriving
        for _ in range(_STEPS_PER_WAKEUP_MAX):
            if self._pending is not None:
                if machine.now_s + TOKEN_S > now_s:
                    return
                self._tell(self._pending)
            elif arriving and arriving[0][0] <= now_s:
                machine.advance(arriving[0][0])  # it stood idle until then
            while arriving and arriving[0][0] <= machine.now_s:
                _, stream = arriving.popleft()
                if self._streams.get(stream.work.request_id) is stream:
                    machine.add(stream.work)
            self._pending = machine.step()
            if self._pending is None and not (arriving and arriving[0][0] <= now_s):
                return

    def _tell(self, step: Step) -> None:
        streams, freeze = self._streams, self._faults.freeze_after_tokens
        last_s = self._machine.now_s
        for request_id, cached in step.cached.items():
            if request_id in streams:
                streams[request_id].cached = cached
        for request_id in step.produced:
            stream = streams.get(request_id)
            if stream is None:
                continue  # cancelled while the step ran
            stream.produced += 1
            stream.last_s = last_s
            if not freeze or stream.produced <= freeze:
                self._progress_tokens += 1
                stream.wake()

    def _die(self, why: str) -> None:
        """What the end of an engine's process does: everything in flight fails, nothing more is produced."""
        self._altered.set()
        self._pace = None
        self._set_timer()
        self._pending = None
        self._arriving.clear()
        for request_id, stream in self._streams.items():
            self._machine.cancel(request_id)
            stream.error = UnavailableError(why, reason=Reason.ENGINE_FAILED)
            stream.wake()
        self._streams.clear()
