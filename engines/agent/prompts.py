"""Prompts for measuring: random words, as many as make the wanted number of tokens.

Nobody here knows the engine's tokenizer, so what a word and the frame around a prompt cost is learned from what the
engine counts. Every prompt differs from its first word on, so that no prefix cache shortens the work.
"""

from __future__ import annotations

import random
from typing import Final

# Short, frequent English words: most are one token in current vocabularies, so that lengths can be met closely. 64 of
# them make two prompts share 16 words, a block of common prefix caches, once in 2^96.
_WORD_LIST: Final = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which"
    " one you were all her she there would their we him been has when who will no more if out so up said what its"
    " about than into them can only other time new some sea"
)
_WORDS: Final = tuple(_WORD_LIST.split())

PROBE_WORDS: Final = (8, 48)
"""Sizes of the first two prompts, words: small enough for any context, far enough apart to tell words from frame."""

_WEIGHT: Final = 0.1


def random_words(count: int, draw: random.Random) -> str:
    """A prompt of `count` words, 1 or more."""
    return " ".join(draw.choices(_WORDS, k=count))


class WordLengths:
    """What words come to in this engine's tokens, learned from its counts."""

    def __init__(self) -> None:
        self._frame_tokens = 0.0
        self._tokens_per_word = 1.0

    def words_for(self, input_tokens: int) -> int:
        """Words that make about `input_tokens` tokens, 1 or more."""
        return max(1, round((input_tokens - self._frame_tokens) / self._tokens_per_word))

    def tokens_of(self, words: int) -> int:
        """About how many tokens a prompt of that many words has, 1 or more."""
        return max(1, round(self._frame_tokens + words * self._tokens_per_word))

    def probed(self, counts: tuple[int, int]) -> None:
        """Learns from scratch what the two prompts of PROBE_WORDS came to, tokens."""
        words = PROBE_WORDS[1] - PROBE_WORDS[0]
        self._tokens_per_word = max(0.1, (counts[1] - counts[0]) / words)
        self._frame_tokens = max(0.0, counts[0] - self._tokens_per_word * PROBE_WORDS[0])

    def counted(self, words: int, input_tokens: int) -> None:
        """Learns from a prompt of that many words that came to so many tokens; short ones say too little."""
        if words >= PROBE_WORDS[1] and input_tokens > self._frame_tokens:
            seen = (input_tokens - self._frame_tokens) / words
            self._tokens_per_word += _WEIGHT * (seen - self._tokens_per_word)
