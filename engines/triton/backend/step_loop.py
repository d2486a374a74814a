"""The one thread that steps the engine: admits, cancels, steps, delivers, and again.

Everything happens between two steps, so a request known to be cancelled costs at most the step that is under way.
The engine holds Python's global lock during a step; further threads would only wait, hence one thread.

Each word with Triton is a round trip to another process: about 300 us for a response and 50 us for the question whether
the caller is still there, against 4 ms for a step over 32 sequences. So neither is done at every step: a caller is
asked for at most every `CANCEL_CHECK_NS`, and tokens of one request may be sent together, `stream_interval_ns` long.
"""

from __future__ import annotations

import enum
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from .dialects import Ask, Part
from .text import Decode, StopFilter, TextStream, take_all

CANCEL_CHECK_NS = 20_000_000


class Failure(enum.Enum):
    """Why a request ends without a result; the names of Triton's error codes."""

    INVALID_ARG = "INVALID_ARG"
    CANCELLED = "CANCELLED"
    UNAVAILABLE = "UNAVAILABLE"


class Reply(Protocol):
    """Where a request's responses go."""

    def send(self, part: Part) -> None:
        """Sends what is new; the last part has a finish reason."""
        ...

    def fail(self, failure: Failure, message: str) -> None:
        """Ends the request with an error."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the caller is gone."""
        ...


class Pipeline(Protocol):
    """The part of openvino_genai.ContinuousBatchingPipeline that is used here."""

    def add_request(self, request_id: int, input_ids: Any, generation_config: Any) -> Any:
        """Queues a request and returns its handle."""
        ...

    def step(self) -> None:
        """Runs one step over all requests."""
        ...

    def has_non_finished_requests(self) -> bool:
        """Whether another step has work."""
        ...


@dataclass(slots=True)
class Job:
    """One request on its way through the loop.

    Attributes:
        request_id: The caller's id; may be empty.
        ask: What it wants.
        input_ids: The prompt as the engine takes it.
        input_tokens: Tokens of the prompt.
        generation_config: How the engine shall generate.
        reply: Where responses go.
        cancelled: Set by a stop request with the same id.
        ended: Set once its last part is sent.
    """

    request_id: str
    ask: Ask
    input_ids: Any
    input_tokens: int
    generation_config: Any
    reply: Reply
    cancelled: bool = False
    ended: bool = False
    handle: Any = None
    stream: TextStream = field(default_factory=TextStream)
    stops: StopFilter = field(init=False)
    text: str = ""
    unsent: str = ""
    unsent_tokens: int = 0
    sent_ns: int = 0
    checked_ns: int = 0

    def __post_init__(self) -> None:
        self.stops = StopFilter(self.ask.stop)


@dataclass(frozen=True, slots=True)
class LoopState:
    """What the loop has done and does.

    Attributes:
        steps: Steps since the start.
        tokens: Tokens generated since the start.
        jobs: Requests in the loop.
    """

    steps: int
    tokens: int
    jobs: int


class StepLoop:
    """Runs a pipeline until closed.

    Args:
        pipeline: The engine.
        decode: The detokenizer.
        finish_reason: Reads "stop", "length" or "" from an output of the engine.
        log: Where the traceback of a broken engine goes.
        after_step: Called after each step with the state, and never while closing: Triton answers nothing then.
        stream_interval_ns: Least time between two responses of a request, the first and the last apart; 0 sends one
            for every step.
        clock_ns: Monotonic time.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        decode: Decode,
        finish_reason: Callable[[Any], str],
        log: Callable[[str], None],
        after_step: Callable[[LoopState], None],
        stream_interval_ns: int = 0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._pipeline = pipeline
        self._decode = decode
        self._finish_reason = finish_reason
        self._log = log
        self._after_step = after_step
        self._stream_interval_ns = stream_interval_ns
        self._clock_ns = clock_ns
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._wake = threading.Condition()
        self._closed = False
        self._broken = ""
        self._added = self._steps = self._tokens = 0
        self._thread = threading.Thread(target=self._run, name="step-loop", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Hands a request over; its reply hears everything further."""
        with self._wake:
            refusal = self._broken or ("The engine is shutting down." if self._closed else "")
            if not refusal:
                self._waiting.append(job)
                self._wake.notify()
        if refusal:
            job.reply.fail(Failure.UNAVAILABLE, refusal)

    def cancel(self, request_id: str) -> None:
        """Marks every request with this id for cancellation before the next step."""
        with self._wake:
            for job in (*self._waiting, *self._running):
                if job.request_id == request_id:
                    job.cancelled = True

    def close(self) -> None:
        """Ends the thread after the present step and fails what is left."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._next():
                self._admit()
                self._cancel()
                if self._pipeline.has_non_finished_requests():
                    self._pipeline.step()
                    self._steps += 1
                self._deliver()
                self._after_step(LoopState(self._steps, self._tokens, len(self._running)))
            self._fail_all("The engine is shutting down.")
        except Exception:  # noqa: BLE001  # whatever broke the engine, no caller may wait for it for ever
            self._log(f"the engine broke:\n{traceback.format_exc()}")
            self._fail_all("The engine broke and must be started again.")

    def _next(self) -> bool:
        """Waits for work; False once closed."""
        with self._wake:
            while not (self._waiting or self._running or self._closed):
                self._wake.wait()
            return not self._closed

    def _admit(self) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            self._added += 1
            try:
                job.handle = self._pipeline.add_request(self._added, job.input_ids, job.generation_config)
            except RuntimeError as error:  # how openvino-genai refuses a generation config
                job.reply.fail(Failure.INVALID_ARG, f"The engine refused the request: {_first_line(error)}")
                continue
            self._running.append(job)

    def _cancel(self) -> None:
        now_ns = self._clock_ns()
        for job in self._running:
            if now_ns - job.checked_ns >= CANCEL_CHECK_NS:
                job.checked_ns = now_ns
                job.cancelled = job.cancelled or job.reply.is_cancelled()
            if job.cancelled:
                job.handle.cancel()
                job.reply.fail(Failure.CANCELLED, "The request was cancelled.")
        self._running = [job for job in self._running if not job.cancelled]

    def _deliver(self) -> None:
        moved: list[tuple[Job, int, str]] = []
        for job in self._running:
            tokens, finish = 0, ""
            while job.handle.can_read():
                for output in job.handle.read().values():
                    job.stream.push(output.generated_ids)
                    tokens += len(output.generated_ids)
                    finish = self._finish_reason(output) or finish
            self._tokens += tokens
            if tokens or finish or job.unsent_tokens:
                moved.append((job, tokens, finish))
        texts = take_all([(job.stream, bool(finish)) for job, _, finish in moved], self._decode) if moved else []
        now_ns = self._clock_ns()
        for (job, tokens, finish), text in zip(moved, texts, strict=True):
            self._send(job, tokens, finish, text, now_ns)
        self._running = [job for job in self._running if not job.ended]

    def _send(self, job: Job, tokens: int, finish: str, text: str, now_ns: int) -> None:
        text = job.stops.push(text)
        if job.stops.stopped:
            if not finish:
                job.handle.cancel()
            finish = "stop"
        elif finish:
            text += job.stops.flush()
        job.text += text
        job.unsent += text
        job.unsent_tokens += tokens
        due = job.ask.stream and now_ns - job.sent_ns >= self._stream_interval_ns
        if finish or due:
            job.reply.send(Part(job.unsent, job.text, job.unsent_tokens, job.input_tokens, finish))
            job.unsent, job.unsent_tokens, job.sent_ns = "", 0, now_ns
        job.ended = bool(finish)

    def _fail_all(self, message: str) -> None:
        with self._wake:
            self._broken = message
            left = [*self._running, *self._waiting]
            self._running, self._waiting = [], deque()
        for job in left:
            job.reply.fail(Failure.UNAVAILABLE, message)


def _first_line(error: RuntimeError) -> str:
    """The last line of an OpenVINO error says what is wrong; those before it name source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"
