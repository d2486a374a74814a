"""Continuing a broken stream elsewhere: the second run repeats what the client already has, and is skipped.

Only for requests whose text is determined by the prompt: greedy ones. The second replica generates from the start; its
text is compared with what was delivered and swallowed as long as it agrees. Where it differs (another build, another
batch's rounding) the stream ends with a typed error instead of a text nobody generated.
"""

from __future__ import annotations


class Replay:
    """Swallows the repeated part of a stream.

    Args:
        delivered_text: What the client has.
        delivered_tokens: The tokens it stands for.
    """

    def __init__(self, delivered_text: str, delivered_tokens: int) -> None:
        self._text = delivered_text
        self._tokens = delivered_tokens
        self._at = 0
        self._seen_tokens = 0

    @property
    def agrees(self) -> bool:
        """Whether everything so far repeated what was delivered; once False it stays so."""
        return self._at >= 0

    def feed(self, text: str, tokens: int) -> tuple[str, int]:
        """Takes a piece of the second run.

        Args:
            text: Its text.
            tokens: Its tokens.

        Returns:
            The part that is new to the client; empty while the run still repeats.
        """
        if self._at < 0:
            return "", 0
        overlap = min(len(text), len(self._text) - self._at)
        if self._text[self._at : self._at + overlap] != text[:overlap]:
            self._at = -1
            return "", 0
        self._at += overlap
        before = max(self._tokens, self._seen_tokens)
        self._seen_tokens += tokens
        return text[overlap:], max(0, self._seen_tokens - before)

    @property
    def caught_up(self) -> bool:
        """Whether the second run has repeated all the text that was delivered."""
        return self._at == len(self._text)
