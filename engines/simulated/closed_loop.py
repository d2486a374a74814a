"""A fixed number of requests at a time, each followed by the next, and the accounts of a measured window of it. Pure.

The first request of each stream stands for one that is already under way: its prompt is longer and its answer shorter
by what it would have produced, spread evenly over the streams. The mix of contexts is about the steady one once every
first prompt is computed, and nobody waits for a whole generation of requests to pass. Whoever is computed first
has the longest answer left, or it would be back in line with its second prompt before the last first one.

The window opens with a first token once this warm-up is over and the line it has left is worked off (half as long
again), and closes with a first token at least `window_s` later: in between lie whole prefills, and the time one of them
took is never counted without its work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Final

from model_units.calibration.load import LoadResult, LoadSpec

# Windows that would hold fewer prefills than this are prolonged: a prompt more or less is then a few percent.
_FIRST_TOKENS_MIN: Final = 6
# The line that the warm-up leaves is worked off within this part of its length.
_SETTLING: Final = 0.5


class _Stream:
    __slots__ = ("input_tokens", "output_tokens", "produced", "sent_s", "warm")

    def __init__(self, input_tokens: int, output_tokens: int, sent_s: float, warm: bool) -> None:
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.produced = 0
        self.sent_s = sent_s
        self.warm = warm


class _Totals:
    """Sums since the beginning; a window is the difference of two."""

    __slots__ = ("context", "decoding_s", "first_tokens", "input", "output", "squares", "time_s")

    def __init__(self) -> None:
        self.time_s = self.decoding_s = self.squares = self.context = 0.0
        self.first_tokens = self.input = self.output = 0

    def copy(self) -> _Totals:
        copy = _Totals()
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        return copy


class ClosedLoop:
    """Deals out requests and keeps the accounts. Whoever drives it says what happened, in order of time.

    Args:
        spec: The load.
        now_s: When it begins.
    """

    def __init__(self, spec: LoadSpec, now_s: float) -> None:
        self._spec = spec
        self._random = random.Random(spec.seed)
        self._deck: list[tuple[int, int]] = []
        self._began_s = self._seen_s = now_s
        self._streams: list[_Stream] = []
        self._warming = spec.concurrency
        self._warm_s = math.inf
        self._decoding = 0
        self._totals = _Totals()
        self._opened: _Totals | None = None
        self._closed: _Totals | None = None
        self._cut_short = False
        self._ttfts_s: list[float] = []

    def begin(self) -> list[tuple[int, int]]:
        """The first request of every stream: (input tokens, output tokens), by the stream's number."""
        count = self._spec.concurrency
        first = []
        for phase in ((index + 0.5) / count for index in range(count)):
            read, made = self._draw()
            passed = min(made - 1, int(phase * made))
            first.append((read + passed, made - passed))
            self._streams.append(_Stream(read + passed, made - passed, self._began_s, warm=True))
        return first

    @property
    def done(self) -> bool:
        """Whether the window is full."""
        return self._closed is not None

    def at_boundary(self, now_s: float) -> bool:
        """Whether a first token now would open or close the window: whoever does not report every token as it comes
        must report all progress before it."""
        if self._opened is None:
            return now_s >= self._settled_s
        return self._full(now_s, coming=1)

    def progress(self, stream: int, produced: int) -> None:
        """A request has produced so many tokens in all; the first one is reported by `first_token`."""
        state = self._streams[stream]
        more = produced - state.produced
        if more > 0:
            self._totals.output += more
            self._totals.context += more * (state.input_tokens + (state.produced + produced - 1) / 2)
            state.produced = produced

    def all_produced(self, stream: int) -> None:
        """A request has produced its last token, whose end is reported by `ended`."""
        self.progress(stream, self._streams[stream].output_tokens)

    def first_token(self, stream: int, now_s: float) -> None:
        """A request got its first token."""
        self._pass(now_s)
        state, totals = self._streams[stream], self._totals
        self._decoding += 1
        totals.first_tokens += 1
        totals.input += state.input_tokens
        totals.squares += state.input_tokens**2
        self.progress(stream, max(1, state.produced))
        if state.warm:
            self._warming -= 1
            if not self._warming:
                self._warm_s = now_s
        elif not self._warming:
            self._ttfts_s.append(now_s - state.sent_s)
        if self._opened is None:
            if now_s >= self._settled_s:
                self._opened = totals.copy()
        elif self._full(now_s):
            self._closed = totals.copy()

    def ended(self, stream: int, now_s: float, produced: int | None = None) -> tuple[int, int]:
        """A request got its last token.

        Args:
            stream: Its stream.
            now_s: When that was seen.
            produced: Tokens of its answer; None for as many as it was sent with.

        Returns:
            The lengths of the next request of its stream, to be sent now.
        """
        self._pass(now_s)
        self.progress(stream, self._streams[stream].output_tokens if produced is None else produced)
        self._decoding -= 1
        read, made = self._draw()
        self._streams[stream] = _Stream(read, made, now_s, warm=False)
        return read, made

    def counted(self, stream: int, input_tokens: int) -> None:
        """A request's prompt is this long and not as long as planned; to be called before its first token, for what was
        summed up stays as it is."""
        self._streams[stream].input_tokens = input_tokens

    def stop(self, now_s: float) -> None:
        """Ends the load at its time limit, with whatever the window holds. What was reported last may have been seen a
        moment after the limit: the load then ends with it."""
        self._pass(max(now_s, self._seen_s))
        if self._closed is None:
            self._closed, self._cut_short = self._totals.copy(), True

    def result(self, now_s: float) -> LoadResult:
        """What it came to; to be called once `done` (or after `stop`)."""
        closed = self._closed or self._totals
        opened = self._opened or closed
        return LoadResult(
            window_s=closed.time_s - opened.time_s,
            engine_s=now_s - self._began_s,
            first_tokens=closed.first_tokens - opened.first_tokens,
            output_tokens=closed.output - opened.output,
            decoding_s=closed.decoding_s - opened.decoding_s,
            input_tokens=closed.input - opened.input,
            input_squares=closed.squares - opened.squares,
            context_tokens=closed.context - opened.context,
            ttft_s_p50=_quantile(self._ttfts_s, 0.5),
            ttft_s_p95=_quantile(self._ttfts_s, 0.95),
            cut_short=self._cut_short,
        )

    @property
    def _settled_s(self) -> float:
        return self._warm_s + _SETTLING * (self._warm_s - self._began_s)

    def _full(self, now_s: float, coming: int = 0) -> bool:
        """Whether the window could close now, with so many first tokens more than were counted."""
        opened = self._opened
        if opened is None or self._closed is not None:
            return False
        enough = self._totals.first_tokens + coming - opened.first_tokens >= _FIRST_TOKENS_MIN
        return enough and now_s - self._began_s - opened.time_s >= self._spec.window_s

    def _pass(self, now_s: float) -> None:
        self._totals.decoding_s += self._decoding * (now_s - self._seen_s)
        self._totals.time_s = now_s - self._began_s
        self._seen_s = now_s

    def _draw(self) -> tuple[int, int]:
        """The next lengths, dealt like cards: every pair comes once before one comes again, so that a mix is the wanted
        one in a short window too."""
        if not self._deck:
            self._deck = list(self._spec.lengths)
            self._random.shuffle(self._deck)
        return self._deck.pop()


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; 0 of nothing."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0
