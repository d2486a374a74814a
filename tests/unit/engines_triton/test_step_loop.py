"""The step loop against a pipeline that is a small list of sequences."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from engines.triton.backend.dialects import Ask, Part
from engines.triton.backend.step_loop import CANCEL_CHECK_NS, Failure, Job, LoopState, StepLoop
from tests.support.waiting import eventually


@dataclass
class Output:
    generated_ids: list[int]
    finish: str = ""


@dataclass
class Sequence:
    """A sequence that spells out its tokens, one a step; also its own handle."""

    tokens: list[int]
    made: int = 0
    unread: list[Output] = field(default_factory=list)
    cancelled: bool = False

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> dict[int, Output]:
        return {0: self.unread.pop(0)}

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def over(self) -> bool:
        return self.cancelled or self.made == len(self.tokens)


class ListPipeline:
    """A pipeline whose generation config is the list of tokens to come. Steps only when told to, if `paced`."""

    def __init__(self, paced: bool = False) -> None:
        self.sequences: list[Sequence] = []
        self.steps = 0
        self.breaks = False
        self._paced = paced
        self._permits = threading.Semaphore(0)

    def permit(self, steps: int) -> None:
        self._permits.release(steps)

    def add_request(self, request_id: int, input_ids: list[int], generation_config: list[int]) -> Sequence:
        if not generation_config:
            raise RuntimeError("Check 'x' failed at file.cpp:1:\n\nnothing to generate")
        self.sequences.append(Sequence(generation_config))
        return self.sequences[-1]

    def has_non_finished_requests(self) -> bool:
        return any(not sequence.over for sequence in self.sequences)

    def step(self) -> None:
        if self._paced:
            self._permits.acquire()
        if self.breaks:
            raise ValueError("broken")
        self.steps += 1
        for sequence in self.sequences:
            if not sequence.over:
                token = sequence.tokens[sequence.made]
                sequence.made += 1
                sequence.unread.append(Output([token], "length" if sequence.over else ""))


class Recorder:
    """A reply that remembers."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.failures: list[tuple[Failure, str]] = []
        self.gone = False

    def send(self, part: Part) -> None:
        self.parts.append(part)

    def fail(self, failure: Failure, message: str) -> None:
        self.failures.append((failure, message))

    def is_cancelled(self) -> bool:
        return self.gone

    @property
    def ended(self) -> bool:
        return bool(self.failures) or bool(self.parts and self.parts[-1].finish)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


class TickingClock:
    """A clock on which every look takes as long as a cancel check's period."""

    def __init__(self, tick_ns: int = CANCEL_CHECK_NS) -> None:
        self.now_ns = 1_000_000_000
        self.tick_ns = tick_ns

    def __call__(self) -> int:
        self.now_ns += self.tick_ns
        return self.now_ns


class Loop:
    """A loop with everything a test looks at."""

    def __init__(self, paced: bool = False, stream_interval_ns: int = 0, tick_ns: int = CANCEL_CHECK_NS) -> None:
        self.pipeline = ListPipeline(paced)
        self.log: list[str] = []
        self.states: list[LoopState] = []
        self.loop = StepLoop(
            self.pipeline,
            lambda windows: [bytes(window).decode(errors="replace") for window in windows],
            lambda output: output.finish,
            self.log.append,
            self.states.append,
            stream_interval_ns,
            TickingClock(tick_ns),
        )
        self.loop.start()

    def submit(
        self, tokens: bytes, *, request_id: str = "r", stop: tuple[str, ...] = (), stream: bool = True
    ) -> Recorder:
        reply = Recorder()
        ask = Ask("p", max_tokens=len(tokens) or 1, stop=stop, stream=stream)
        self.loop.submit(Job(request_id, ask, [1, 2, 3], 3, list(tokens), reply))
        return reply


@pytest.fixture
def loop() -> Loop:
    return Loop()


async def ended(*replies: Recorder) -> None:
    await eventually(lambda: all(reply.ended for reply in replies), 5)


async def test_streams_one_part_per_token_with_counts_and_reason(loop: Loop) -> None:
    """Shows the plain path: every token is a part, the last has the reason, the prompt's tokens are told."""
    reply = loop.submit(b"hello")
    await ended(reply)
    assert [part.text for part in reply.parts] == list("hello")
    assert [part.tokens for part in reply.parts] == [1] * 5
    assert reply.parts[-1] == Part("o", "hello", 1, 3, "length")
    loop.loop.close()


async def test_requests_share_steps(loop: Loop) -> None:
    """Shows batching: requests that come together take as many steps as the longest, not as all."""
    paced = Loop(paced=True)
    replies = [paced.submit(b"x" * 8) for _ in range(5)]
    paced.pipeline.permit(100)
    await ended(*replies)
    assert paced.pipeline.steps <= 9  # one may be spent before all have arrived
    paced.loop.close()
    loop.loop.close()


async def test_without_streaming_there_is_one_part(loop: Loop) -> None:
    """Shows that a request that does not stream gets everything at once."""
    reply = loop.submit(b"hello", stream=False)
    await ended(reply)
    assert reply.parts == [Part("hello", "hello", 5, 3, "length")]
    loop.loop.close()


async def test_tokens_within_the_interval_go_together() -> None:
    """Shows that the stream interval joins tokens, while the first and the last never wait."""
    slow = Loop(stream_interval_ns=10_000, tick_ns=1_000)
    reply = slow.submit(b"a" * 100)
    await ended(reply)
    assert reply.parts[0].tokens == 1
    assert sum(part.tokens for part in reply.parts) == 100
    assert reply.text == "a" * 100
    assert len(reply.parts) < 60
    slow.loop.close()


async def test_stop_sequence_ends_text_and_work(loop: Loop) -> None:
    """Shows that text ends before the stop sequence, the reason is stop, and the engine's work is cancelled."""
    reply = loop.submit(b"one two three", stop=("two",))
    await ended(reply)
    assert reply.text == "one "
    assert reply.parts[-1].finish == "stop"
    assert loop.pipeline.sequences[0].cancelled
    assert loop.pipeline.sequences[0].made == len("one two")
    loop.loop.close()


async def test_a_caller_that_is_gone_costs_no_further_step() -> None:
    """Proves that cancellation stops the engine's work before the next step and leaves the others alone."""
    paced = Loop(paced=True)
    gone, other = paced.submit(b"x" * 50), paced.submit(b"y" * 6)
    paced.pipeline.permit(3)
    await eventually(lambda: paced.pipeline.steps == 3, 5)
    gone.gone = True
    made = paced.pipeline.sequences[0].made
    paced.pipeline.permit(50)
    await ended(gone, other)
    assert gone.failures[0][0] is Failure.CANCELLED
    assert paced.pipeline.sequences[0].made <= made + 1  # the step that was under way
    assert other.text == "y" * 6
    paced.loop.close()


async def test_a_stop_request_cancels_the_request_of_the_same_id() -> None:
    """Shows the LLM API dialect's way to cancel: by id."""
    paced = Loop(paced=True)
    first, second = paced.submit(b"x" * 50, request_id="a"), paced.submit(b"y" * 4, request_id="b")
    paced.pipeline.permit(1)
    await eventually(lambda: paced.pipeline.steps == 1, 5)
    paced.loop.cancel("a")
    paced.pipeline.permit(50)
    await ended(first, second)
    assert first.failures[0][0] is Failure.CANCELLED
    assert second.text == "yyyy"
    paced.loop.close()


async def test_a_refused_request_harms_nobody_else(loop: Loop) -> None:
    """Shows that what the engine refuses fails alone, with the engine's reason and no source file name."""
    bad, good = loop.submit(b""), loop.submit(b"ok")
    await ended(bad, good)
    assert bad.failures == [(Failure.INVALID_ARG, "The engine refused the request: nothing to generate")]
    assert good.text == "ok"
    loop.loop.close()


async def test_a_broken_engine_fails_everything_now_and_later() -> None:
    """Shows that nobody waits for an engine that broke: those inside and those that come later hear of it."""
    paced = Loop(paced=True)
    inside = paced.submit(b"xxxx")
    paced.pipeline.breaks = True
    paced.pipeline.permit(1)
    await ended(inside)
    later = paced.submit(b"yyyy")
    await ended(later)
    assert inside.failures[0][0] is later.failures[0][0] is Failure.UNAVAILABLE
    assert "ValueError: broken" in paced.log[0]
    paced.loop.close()


async def test_closing_fails_what_is_left() -> None:
    """Shows that unloading the model answers every request in it."""
    paced = Loop(paced=True)
    left = paced.submit(b"x" * 50)
    paced.pipeline.permit(2)
    await eventually(lambda: paced.pipeline.steps == 2, 5)
    closing = threading.Thread(target=paced.loop.close)
    closing.start()
    paced.pipeline.permit(1)
    await ended(left)
    closing.join(5)
    assert left.failures[0][0] is Failure.UNAVAILABLE
    assert not closing.is_alive()


async def test_state_counts_steps_tokens_and_requests(loop: Loop) -> None:
    """Shows what the counters on the metrics endpoint are made of."""
    await ended(loop.submit(b"abcd"))
    await eventually(lambda: loop.states[-1].jobs == 0, 5)
    assert loop.states[-1] == LoopState(steps=4, tokens=4, jobs=0)
    loop.loop.close()
