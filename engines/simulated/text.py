"""What a simulated engine says: plain words, always the same after the same text.

The next word is a function of the whole text so far (its CRC-32, which can be continued) and the seed. So a stream that
broke after some words goes on with exactly the same ones on another replica that is given prompt plus words, just as a
real engine does under greedy decoding. Where the answer ends is drawn from the same state, one chance per token, which
makes lengths geometric and a continued answer end at the same place.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Final

from engines.engine import Finish, Prompt

MEAN_OUTPUT_TOKENS: Final = 256
"""Mean output of a request that may end by itself; recorded chat traffic has means of 200 to 350."""

_WORD_LIST: Final = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one"
    " you were all her she there would their we him been has when who will no more if out so up said what its about"
    " than into them can only other time new some could these two may first then do any like my now over such our man"
    " me even most made after also well did many must before back see through way where get much go good sea wind ship"
    " port tide bay rope sail deck crew"
)
_TOKENS: Final = tuple((" " + word, f" {word}".encode()) for word in _WORD_LIST.split())
# Multiplicative hashing spreads the CRC's bits (Knuth, The Art of Computer Programming 3, 6.4).
_MIX: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1
_SEED_MIX: Final = 0xD1B54A32D192ED03


def render(prompt: Prompt) -> str:
    """The text the model sees. A conversation whose last turn is the assistant's is left open, to be continued."""
    if not prompt.messages:
        return prompt.text
    parts = [f"<|{role}|>{content}\n" for role, content in prompt.messages]
    last_role, last_content = prompt.messages[-1]
    parts[-1] = f"<|assistant|>{last_content}" if last_role == "assistant" else parts[-1] + "<|assistant|>"
    return "".join(parts)


def _tokens(text: str, seed: int) -> Iterator[tuple[str, bool]]:
    """The endless continuation of `text`: (token, whether the answer ends after it unless told otherwise)."""
    salt = (seed * _SEED_MIX) & _MASK
    state = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    while True:
        mixed = ((state ^ salt) * _MIX) & _MASK
        mixed = ((mixed ^ (mixed >> 29)) * _MIX) & _MASK
        token, encoded = _TOKENS[(mixed >> 40) % len(_TOKENS)]
        yield token, (mixed >> 12) % MEAN_OUTPUT_TOKENS == 0
        state = zlib.crc32(encoded, state)


class OutputText:
    """The answer to one request, known from the start, told token by token.

    Args:
        text: The rendered prompt.
        max_tokens: Most output tokens, 1 or more.
        seed: Draws another answer; 0 is greedy decoding.
        ignore_end_token: Run to max_tokens unless a stop text comes first.
        stop: The answer ends before the first of these.

    Attributes:
        tokens: Its length, 1 to `max_tokens`.
        finish: Why it ends there.
    """

    def __init__(
        self,
        text: str,
        *,
        max_tokens: int,
        seed: int = 0,
        ignore_end_token: bool = False,
        stop: tuple[str, ...] = (),
    ) -> None:
        self._tokens = _tokens(text, seed)
        self._characters_left: int | None = None  # set where a stop text cuts the answer short
        self.tokens, self.finish = max_tokens, Finish.LENGTH
        stop = tuple(filter(None, stop))
        if not ignore_end_token or stop:
            self._plan(_tokens(text, seed), ignore_end_token, stop)

    def _plan(self, tokens: Iterator[tuple[str, bool]], ignore_end_token: bool, stop: tuple[str, ...]) -> None:
        """Looks ahead for the end."""
        said = ""
        reach = max((len(text) for text in stop), default=0)
        for count, (token, ends) in enumerate(itertools.islice(tokens, self.tokens), 1):
            if stop:
                begin = max(0, len(said) - reach + 1)
                said += token
                found = [at for at in (said.find(text, begin) for text in stop) if at >= 0]
                if found:
                    self._characters_left = min(found)
                    self.tokens, self.finish = count, Finish.STOP
                    return
            if ends and not ignore_end_token:
                self.tokens, self.finish = count, Finish.STOP
                return

    def take(self, count: int) -> str:
        """The text of the next `count` tokens."""
        text = "".join([token for token, _ in itertools.islice(self._tokens, count)])
        if self._characters_left is not None:
            text = text[: self._characters_left]
            self._characters_left -= len(text)
        return text
