"""The accounts of a load against a naive replay, token by token."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.simulated.closed_loop import ClosedLoop
from model_units.calibration.load import LoadResult, LoadSpec


@dataclass(frozen=True)
class Token:
    """One token of one request, as it came out."""

    time_s: float
    request: int
    number: int
    input_tokens: int
    sent_s: float
    warm: bool

    @property
    def first(self) -> bool:
        """Whether its prompt has just been computed."""
        return self.number == 1


class Replay:
    """Drives a loop through an engine that computes prompts one after the other, at `read_s` a token, while every
    answer grows by a token each `pace_s`, and keeps every token."""

    def __init__(self, spec: LoadSpec, read_s: float, pace_s: float, *, lazily: bool = False) -> None:
        self.spec = spec
        self.read_s = read_s
        self.pace_s = pace_s
        self.lazily = lazily
        self.loop = ClosedLoop(spec, 100.0)
        self.tokens: list[Token] = []
        self.ends: list[tuple[float, int]] = []
        self.now_s = 100.0
        self.reports = 0

    def run(self) -> LoadResult:
        """Until the window is full or the time is over."""
        events: list[tuple[float, int, int, int, int, int]] = []  # time, order, stream, number, input, output
        busy_s, order, requests = self.now_s, 0, 0
        sent: dict[int, tuple[float, int, bool]] = {}
        produced = [0] * self.spec.concurrency
        lengths = dict(enumerate(self.loop.begin()))
        starts = [(stream, self.now_s, True) for stream in lengths]
        while True:
            for stream, sent_s, warm in starts:
                requests += 1
                sent[stream] = (sent_s, requests, warm)
                read, made = lengths[stream]
                busy_s = max(busy_s, sent_s) + read * self.read_s
                order += 1
                heapq.heappush(events, (busy_s, order, stream, 1, read, made))
            starts = []
            time_s, _, stream, number, read, made = heapq.heappop(events)
            if time_s > 100.0 + self.spec.time_max_s:
                self.now_s = 100.0 + self.spec.time_max_s
                self._report(produced)
                self.loop.stop(self.now_s)
                break
            self.now_s = time_s
            sent_s, request, warm = sent[stream]
            self.tokens.append(Token(time_s, request, number, read, sent_s, warm))
            if number == 1:
                if not self.lazily or self.loop.at_boundary(time_s):
                    self.reports += 1
                    self._report(produced, but=stream)
                self.loop.first_token(stream, time_s)
            elif not self.lazily:
                self.loop.progress(stream, number)
            produced[stream] = number
            if number < made:
                order += 1
                heapq.heappush(events, (time_s + self.pace_s, order, stream, number + 1, read, made))
            else:
                lengths[stream] = self.loop.ended(stream, time_s)
                produced[stream] = 0
                self.ends.append((time_s, request))
                starts = [(stream, time_s, False)]
            if self.loop.done:
                break
        return self.loop.result(self.now_s)

    def _report(self, produced: list[int], but: int = -1) -> None:
        for stream, number in enumerate(produced):
            if number and stream != but:
                self.loop.progress(stream, number)

    def naive(self) -> dict[str, float]:
        """The accounts, from the tokens alone."""
        warm_s = [token.time_s for token in self.tokens if token.first and token.warm]
        firsts = [(place, token.time_s) for place, token in enumerate(self.tokens) if token.first]
        settled_s = math.inf
        if len(warm_s) == self.spec.concurrency:
            settled_s = warm_s[-1] + (warm_s[-1] - 100.0) / 2
        opens = [(place, time_s) for place, time_s in firsts if time_s >= settled_s]
        if not opens:
            return {}
        opened, opened_s = opens[0]
        closes = [
            (place, time_s)
            for count, (place, time_s) in enumerate(opens)
            if count >= 6 and time_s - opened_s >= self.spec.window_s
        ]
        closed, closed_s = closes[0] if closes else (len(self.tokens) - 1, self.now_s)
        inside = self.tokens[opened + 1 : closed + 1]
        prompts = [token.input_tokens for token in inside if token.first]
        waits = sorted(
            token.time_s - token.sent_s
            for token in self.tokens
            if token.first and not token.warm and token.time_s >= warm_s[-1]
        )
        ends = {request: time_s for time_s, request in self.ends}
        decoding = (
            max(0.0, min(closed_s, ends.get(token.request, math.inf)) - max(opened_s, token.time_s))
            for token in self.tokens
            if token.first
        )
        return {
            "window_s": closed_s - opened_s,
            "first_tokens": len(prompts),
            "output_tokens": len(inside),
            "input_tokens": sum(prompts),
            "input_squares": sum(read**2 for read in prompts),
            "context_tokens": sum(token.input_tokens + token.number - 1 for token in inside),
            "decoding_s": sum(decoding),
            "ttft_s_p50": waits[math.ceil(0.5 * len(waits)) - 1],
            "ttft_s_p95": waits[math.ceil(0.95 * len(waits)) - 1],
            "cut_short": not closes,
        }


pairs = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 25)), min_size=1, max_size=5).map(tuple)
specs = st.builds(
    LoadSpec,
    lengths=pairs,
    concurrency=st.integers(1, 7),
    window_s=st.floats(0.05, 3.0),
    time_max_s=st.floats(1.0, 30.0),
    seed=st.integers(1, 1_000),
)


@settings(max_examples=60, deadline=None)
@given(specs, st.floats(1e-4, 5e-3), st.floats(1e-3, 5e-2), st.booleans())
def test_accounts_are_those_of_the_tokens(spec: LoadSpec, read_s: float, pace_s: float, lazily: bool) -> None:
    """Proves every sum of a window, the window itself and the waiting times against a list of all tokens, both when
    each token is reported as it comes and when progress is reported only where `at_boundary` asks for it."""
    replay = Replay(spec, read_s, pace_s, lazily=lazily)
    result = replay.run()
    naive = replay.naive()
    assert result.engine_s == pytest.approx(replay.now_s - 100.0)
    if not naive:
        assert result.cut_short
        assert not result.usable
        return
    found = {name: getattr(result, name) for name in naive}
    assert found == pytest.approx(naive, rel=1e-9, abs=1e-9)


def test_progress_is_asked_for_at_both_ends_only() -> None:
    """Proves that whoever reports lazily is asked exactly twice: for the token that opens and the one that closes."""
    replay = Replay(LoadSpec(((40, 12),), 5, 2.0, 60.0), 1e-3, 1e-2, lazily=True)
    result = replay.run()
    assert not result.cut_short
    assert replay.reports == 2


def test_a_window_holds_whole_prefills() -> None:
    """Proves that a window is prolonged until it holds six prompts, and closes with the first token that fills it."""
    spec = LoadSpec(((100, 3),), 1, 0.001, 60.0)
    result = Replay(spec, 1e-3, 1e-2).run()
    assert result.first_tokens == 6
    assert result.window_s == pytest.approx(6 * 0.12)
    longer = Replay(LoadSpec(((100, 3),), 1, 1.0, 60.0), 1e-3, 1e-2).run()
    assert longer.first_tokens == 9
    assert longer.window_s == pytest.approx(9 * 0.12)


def test_the_warm_up_begins_in_the_middle_of_answers() -> None:
    """Proves that the first requests stand for ones under way: their answers are spread evenly, the longest first, and
    what they would have produced is in their prompts."""
    loop = ClosedLoop(LoadSpec(((100, 8),), 4, 1.0, 10.0), 0.0)
    assert loop.begin() == [(101, 7), (103, 5), (105, 3), (107, 1)]


def test_a_load_that_ends_in_its_warm_up_measures_nothing() -> None:
    """Proves that a load whose first prompts are not all computed in time holds no window, and says so."""
    result = Replay(LoadSpec(((1_000, 100),), 5, 1.0, 4.5), 1e-3, 1e-3).run()
    assert result.cut_short
    assert (result.window_s, result.first_tokens, result.output_tokens, result.usable) == (0.0, 0, 0, False)
    assert (result.tpot_s, result.ttft_s_p95) == (0.0, 0.0)
    assert result.engine_s == pytest.approx(4.5)


def test_a_load_cut_short_keeps_what_its_window_holds() -> None:
    """Proves that a load that reaches its time limit in the window reports the part that was measured."""
    result = Replay(LoadSpec(((100, 20),), 2, 100.0, 5.0), 1e-3, 1e-2).run()
    assert result.cut_short
    assert result.usable
    assert 3.0 < result.window_s < 5.0


def test_a_mix_is_dealt_like_cards() -> None:
    """Proves that every pair of a mix comes once before one comes again, in an order that the seed decides."""
    lengths = tuple((10 * index, 1) for index in range(1, 9))

    def dealt(seed: int) -> list[int]:
        loop = ClosedLoop(LoadSpec(lengths, 4, 1.0, 10.0, seed), 0.0)
        drawn = [read for read, _ in loop.begin()]
        for turn in range(12):
            loop.first_token(turn % 4, float(turn))
            drawn.append(loop.ended(turn % 4, float(turn))[0])
        return drawn

    first = dealt(1)
    assert sorted(first[:8]) == sorted(first[8:]) == [read for read, _ in lengths]
    assert dealt(1) == first
    assert dealt(2) != first


def test_the_engines_count_of_a_prompt_is_what_counts() -> None:
    """Proves that a prompt whose length the engine counts otherwise is accounted with the engine's number."""
    loop = ClosedLoop(LoadSpec(((50, 1),), 1, 0.5, 60.0), 0.0)
    loop.begin()
    now_s = 0.0
    while not loop.done:
        loop.counted(0, 53)
        now_s += 0.25
        loop.first_token(0, now_s)
        loop.ended(0, now_s)
    result = loop.result(now_s)
    assert result.input_tokens == 53 * result.first_tokens
    assert result.input_squares == 53**2 * result.first_tokens
    assert result.context_tokens == 53 * result.output_tokens


def test_an_answer_that_ends_early_counts_as_it_was() -> None:
    """Proves that an answer of 9 instead of 10 tokens is summed up with the 9 that came."""
    loop = ClosedLoop(LoadSpec(((50, 10),), 1, 0.5, 60.0), 0.0)
    loop.begin()
    now_s = 0.0
    while not loop.done:
        loop.first_token(0, now_s + 0.1)
        now_s += 0.25
        if not loop.done:
            loop.ended(0, now_s, 9)
    result = loop.result(now_s)
    assert result.output_tokens == 9 * result.first_tokens


@pytest.mark.parametrize("limit_s", [100.249_977, 100.25, 100.3])
def test_a_limit_before_what_was_just_seen_ends_with_it(limit_s: float) -> None:
    """Proves that a load which is cut a moment before the token that opened its window was seen has an empty window
    and not one of less than no time."""
    loop = ClosedLoop(LoadSpec(((50, 2),), 1, 0.5, 0.25), 100.0)
    loop.begin()
    loop.first_token(0, 100.1)
    loop.ended(0, 100.15)
    loop.first_token(0, 100.25)  # the window opens
    loop.stop(limit_s)
    result = loop.result(limit_s)
    assert result.cut_short
    assert not result.usable
    assert result.window_s == pytest.approx(max(0.0, limit_s - 100.25))
