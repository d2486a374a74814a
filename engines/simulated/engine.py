"""The step machine in real time, behind the Engine protocol.

Steps follow a virtual schedule: a step begins when the one before it was due to end, however late the event loop woke
up to see it, so that a busy machine does not slow the simulated replica down. Steps that are overdue are computed in
one wake-up. A process that stood still for long does not catch up: a paused GPU would not either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

from common.logs import get_logger
from engines.engine import EngineDescription, EngineRequest, TokenBatch
from engines.simulated.faults import Faults
from engines.simulated.hardware import LLAMA_3_1_CONTEXT_TOKENS, Hardware
from engines.simulated.rehearsal import rehearse
from engines.simulated.step_machine import StepMachine
from engines.simulated.text import OutputText, render
from engines.simulated.work import SchedulerLimits, Step, Work
from fairlead.errors import InvalidArgumentError, Reason, UnavailableError
from model_units.calibration.load import LoadResult, LoadSpec

log = get_logger(__name__)

VERSION: Final = "1"
"""Version of the simulation, as the engine says of itself."""

BYTES_PER_TOKEN: Final = 4.0
"""Bytes of text per prompt token; about what English takes in current vocabularies."""

_WAKEUP_MIN_S: Final = 0.002
_STEPS_PER_WAKEUP_MAX: Final = 64
_LAG_MAX_S: Final = 0.5
_GARBAGE: Final = "\ufffd\x00"


@dataclass(slots=True)
class _Stream:
    output: OutputText
    produced: int = 0
    taken: int = 0
    error: UnavailableError | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class SimulatedEngine:
    """One simulated replica.

    Args:
        hardware: Step times and KV capacity.
        limits: Scheduler limits.
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
        self._limits = limits or SchedulerLimits()
        self._cold_start_s = cold_start_s
        self._context_tokens = min(context_tokens, hardware.kv_capacity_tokens)
        self._machine = StepMachine(hardware, self._limits)
        self._streams: dict[str, _Stream] = {}
        self._faults = Faults()
        self._wake = asyncio.Event()
        self._altered = asyncio.Event()  # faults were set, or the engine ended
        self._loop_task: asyncio.Task[None] | None = None
        self._progress_tokens = 0

    @property
    def faults(self) -> Faults:
        """The faults in force."""
        return self._faults

    def set_faults(self, faults: Faults) -> None:
        """Replaces the faults; what was frozen goes on when its fault is gone."""
        self._faults = faults
        self._wake.set()
        self._altered.set()
        for stream in self._streams.values():
            stream.ready.set()

    async def start(self) -> EngineDescription:
        """See Engine. A restart heals every fault but the crash marker, which is the prompts' fault."""
        await self.stop()
        self._faults = self._faults.after_restart()
        await asyncio.sleep(self._cold_start_s)
        self._machine = StepMachine(self._hardware, self._limits)
        self._progress_tokens = 0
        self._loop_task = asyncio.create_task(self._run(), name="simulated-engine")
        self._loop_task.add_done_callback(self._ended)
        return EngineDescription(
            engine="simulated",
            version=VERSION,
            sequences_max=self._limits.sequences_max,
            kv_capacity_tokens=self._hardware.kv_capacity_tokens,
            context_tokens=self._context_tokens,
        )

    async def stop(self) -> None:
        """See Engine."""
        self._die("the engine was stopped")

    def alive(self) -> bool:
        """See Engine."""
        return self._loop_task is not None

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
        """See Engine."""
        text = render(request.prompt)
        self._refuse_if_broken(text)
        input_tokens = max(1, round(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN))
        room = self._context_tokens - input_tokens
        if room < 1:
            raise InvalidArgumentError(
                f"the prompt has about {input_tokens} tokens; the model takes {self._context_tokens - 1}",
                reason=Reason.PROMPT_TOO_LONG,
                field="prompt",
            )
        sampling = request.sampling
        output = OutputText(
            text,
            max_tokens=min(sampling.max_tokens, room),
            seed=sampling.seed or 0,
            ignore_end_token=sampling.ignore_end_token,
            stop=sampling.stop,
        )
        if request.request_id in self._streams:
            raise InvalidArgumentError("a request with this id is running", reason=Reason.REQUEST_IN_FLIGHT)
        stream = self._streams[request.request_id] = _Stream(output)
        try:
            self._machine.add(Work(request.request_id, input_tokens, output.tokens, request.priority))
            self._wake.set()
            async for count in self._counts(stream):
                last = stream.taken == output.tokens
                yield TokenBatch(
                    text=_GARBAGE * count if self._faults.garbage else output.take(count),
                    output_tokens=count,
                    finish=output.finish if last else None,
                    input_tokens=input_tokens if last else 0,
                )
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
        engine, result = self._loop_task, None
        while True:
            self._altered.clear()
            if engine is None or engine is not self._loop_task:
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

    def _refuse_if_broken(self, text: str) -> None:
        if not self.alive():
            raise UnavailableError("the engine is not running", reason=Reason.ENGINE_FAILED)
        marker = self._faults.crash_marker
        if marker and marker in text:
            self._die("the engine died of a request")
            raise UnavailableError("the engine died of this request", reason=Reason.ENGINE_FAILED)
        if self._faults.out_of_memory:
            raise UnavailableError("the engine is out of memory", reason=Reason.ENGINE_FAILED)

    async def _counts(self, stream: _Stream) -> AsyncGenerator[int]:
        """Yields how many new tokens there are, each time there are some, until the stream's end."""
        while stream.taken < stream.output.tokens:
            freeze = self._faults.freeze_after_tokens
            available = (min(stream.produced, freeze) if freeze else stream.produced) - stream.taken
            if stream.error is not None:
                raise stream.error
            if available > 0:
                stream.taken += available
                yield available
            else:
                stream.ready.clear()
                await stream.ready.wait()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            while self._faults.hang or not self._machine.busy:
                self._wake.clear()
                await self._wake.wait()
                due_s = loop.time()
            now_s = loop.time()
            if now_s - due_s > _LAG_MAX_S:
                due_s = now_s
            steps: list[Step] = []
            while due_s - now_s < _WAKEUP_MIN_S and len(steps) < _STEPS_PER_WAKEUP_MAX:
                step = self._machine.step()
                if step is None:
                    break
                steps.append(step)
                due_s += step.duration_s * self._faults.slow_factor
            await asyncio.sleep(max(_WAKEUP_MIN_S, due_s - loop.time()))
            while self._faults.hang:
                self._wake.clear()
                await self._wake.wait()
            for step in steps:
                self._deliver(step)

    def _deliver(self, step: Step) -> None:
        freeze = self._faults.freeze_after_tokens
        for request_id in step.produced:
            stream = self._streams.get(request_id)
            if stream is None:
                continue  # cancelled while the step ran
            stream.produced += 1
            if not freeze or stream.produced <= freeze:
                self._progress_tokens += 1
                stream.ready.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("simulated engine failed", exc_info=error)
            if task is self._loop_task:
                self._die("the engine failed")

    def _die(self, why: str) -> None:
        """What the end of an engine's process does: everything in flight fails, nothing more is produced."""
        self._altered.set()
        if self._loop_task is not None:
            self._loop_task.cancel()
            self._loop_task = None
        for request_id, stream in self._streams.items():
            self._machine.cancel(request_id)
            stream.error = UnavailableError(why, reason=Reason.ENGINE_FAILED)
            stream.ready.set()
        self._streams.clear()
