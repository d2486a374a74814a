"""Text of a sequence as its tokens come: never half a character, never any part of a stop sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Decoding looks at the last tokens only. A character has at most 4 bytes and a token at least 1, so 4 tokens of
# context always hold an incomplete character whole.
_CONTEXT_TOKENS = 4
_WINDOW_TOKENS = 16

Decode = Callable[[list[list[int]]], list[str]]


class TextStream:
    """Turns the growing token list of one sequence into text that is only ever appended to.

    A tokenizer of bytes may spread a character over several tokens; decoded early it shows as U+FFFD at the end, and
    so exactly that last U+FFFD is held back until the next token tells what it is. Example, "é" as two tokens: the
    first yields "", the second "é".
    """

    __slots__ = ("_sent", "_window")

    def __init__(self) -> None:
        self._window: list[int] = []
        self._sent = 0

    def push(self, tokens: Sequence[int]) -> None:
        """Appends new tokens; `take` then yields their text."""
        self._window.extend(tokens)

    def windows(self) -> list[list[int]]:
        """Token lists whose texts `take` wants: the window, and its end where it has grown long."""
        if len(self._window) <= _WINDOW_TOKENS:
            return [self._window]
        return [self._window, self._window[-_CONTEXT_TOKENS:]]

    def take(self, texts: Sequence[str], *, final: bool) -> str:
        """Returns the text that is new since the last call.

        Args:
            texts: What `windows` decodes to.
            final: No token follows: a character that is still incomplete comes out as U+FFFD.
        """
        stable = _stable_length(texts[0], final)
        new = texts[0][self._sent : stable]
        self._sent = max(self._sent, stable)
        if len(texts) > 1:
            del self._window[:-_CONTEXT_TOKENS]
            self._sent = _stable_length(texts[1], final)
        return new


def _stable_length(text: str, final: bool) -> int:
    return len(text) if final or not text.endswith(REPLACEMENT) else len(text) - 1


def take_all(streams: Sequence[tuple[TextStream, bool]], decode: Decode) -> list[str]:
    """Returns the new text of many streams for one call of the detokenizer, whose cost is nearly all per call.

    Args:
        streams: Each with whether it is final.
        decode: Texts of token lists.
    """
    windows = [stream.windows() for stream, _ in streams]
    texts = iter(decode([window for group in windows for window in group]))
    return [
        stream.take([next(texts) for _ in group], final=final)
        for (stream, final), group in zip(streams, windows, strict=True)
    ]


class StopFilter:
    """Ends a text before the first stop sequence, holding back what may yet become one.

    Args:
        stops: Non-empty texts; none means everything passes.
    """

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Takes new text, returns what may be shown, and sets `stopped` once a stop sequence is complete."""
        if not self._stops:
            return text
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Returns what was held back, once nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
