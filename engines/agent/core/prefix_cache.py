"""Which prompts' beginnings an engine still has in its KV cache, as far as its agent can know.

Prompts come as the names of their leading blocks, front first; each name stands for its block and everything before it.
Engines do not say what they keep, but all of them keep it alike: what was computed stays until its room is needed, the
one not used for longest goes first, and of one prompt the end before the beginning, so that what is left can still be
matched. That is done here with names instead of tensors.

Readers follow by position: each change has a number, the latest are kept, and a reader that says how far it has read
gets what happened since, netted (what came and went is not told at all). One that is too far behind gets everything
anew. So any number of readers costs one list.

Example with room for three blocks: prompt (1, 2) is computed, then (1, 3), then (7): 2 goes, because 1 was used again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

BLOCKS_MAX: Final = 1_024
"""Most blocks of one prompt that are looked at; what a router sends beyond them is ignored."""

CHANGES_MAX: Final = 16_384
"""Changes remembered for readers: what a cache of 2 M tokens takes to be exchanged twice, in blocks of 256 tokens."""


@dataclass(frozen=True, slots=True)
class CacheChanges:
    """What a reader has to learn.

    Attributes:
        position: How far it has read then.
        whole: It is all that the cache holds, and not a change.
        added: Blocks that came.
        dropped: Blocks that went; empty where it is all.
    """

    position: int
    whole: bool
    added: tuple[int, ...]
    dropped: tuple[int, ...]

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return self.whole or bool(self.added or self.dropped)


class PrefixCache:
    """The names of the blocks that an engine holds, the ones not used for longest first.

    Args:
        capacity_tokens: Size of the KV cache, tokens; 0 holds nothing: the engine has none, or does not tell.
    """

    def __init__(self, capacity_tokens: int = 0) -> None:
        self._capacity_tokens = capacity_tokens
        self._blocks: OrderedDict[int, tuple[int, int | None]] = OrderedDict()  # name: (tokens, part that brought it)
        self._tokens = 0
        self._tokens_by_part: Counter[int] = Counter()
        self._log: list[int] = []  # names that came or went, oldest first; which of both follows from what is held
        self._log_begin = 0  # position of the first of them
        self._told: dict[int | None, CacheChanges] = {}  # since the latest change

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._blocks)

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def __iter__(self) -> Iterator[int]:
        """The blocks held, the ones not used for longest first."""
        return iter(self._blocks)

    @property
    def tokens(self) -> int:
        """Prompt tokens held."""
        return self._tokens

    @property
    def tokens_by_part(self) -> Mapping[int, int]:
        """Prompt tokens held by the part of the key space that brought them, above 0 each. A live view."""
        return MappingProxyType(self._tokens_by_part)

    @property
    def position(self) -> int:
        """How far a reader has read that knows everything."""
        return self._log_begin + len(self._log)

    def touch(self, blocks: Sequence[int]) -> int:
        """A request goes into the engine, which uses what it has of the prompt.

        Args:
            blocks: Names of its prompt's leading blocks, front first.

        Returns:
            How many of them, from the front, are held.
        """
        held = 0
        for block in blocks[:BLOCKS_MAX]:
            if block not in self._blocks:
                break
            held += 1
        for block in reversed(blocks[:held]):
            self._blocks.move_to_end(block)
        return held

    def fill(self, blocks: Sequence[int], tokens_per_block: int, key_part: int | None = None) -> None:
        """A prompt has been computed: its first token is there.

        Args:
            blocks: Names of its leading blocks, front first; beyond BLOCKS_MAX they are ignored.
            tokens_per_block: Tokens that one of them stands for; less than 1 counts as 1.
            key_part: The part of the key space it belongs to; None where that was not said.
        """
        tokens_per_block = max(1, tokens_per_block)
        held, added = self._blocks, False
        # Of a prompt larger than the cache the beginning is what can be matched again.
        for block in reversed(blocks[: min(BLOCKS_MAX, self._capacity_tokens // tokens_per_block)]):
            if block in held:
                held.move_to_end(block)
                continue
            held[block] = (tokens_per_block, key_part)
            self._tokens += tokens_per_block
            if key_part is not None:
                self._tokens_by_part[key_part] += tokens_per_block
            self._log.append(block)
            added = True
        if added:
            self._evict()
            self._changed()

    def restart(self, capacity_tokens: int) -> None:
        """The engine has started again with an empty cache.

        Args:
            capacity_tokens: Size of its KV cache, as in the constructor.
        """
        self._capacity_tokens = capacity_tokens
        self.clear()

    def clear(self) -> None:
        """What was held cannot be relied on any more."""
        self._log_begin = self.position + 1  # nobody has read up to here: every reader gets everything anew
        self._log.clear()
        self._blocks.clear()
        self._tokens = 0
        self._tokens_by_part.clear()
        self._told.clear()

    def changes(self, since: int | None) -> CacheChanges:
        """What a reader has to learn.

        Args:
            since: The position of what it was told last; None when it knows nothing.
        """
        if since is not None and not self._log_begin <= since <= self.position:
            since = None
        told = self._told.get(since)
        if told is None:
            told = self._told[since] = self._whole() if since is None else self._since(since)
        return told

    def _whole(self) -> CacheChanges:
        return CacheChanges(self.position, True, tuple(self._blocks), ())

    def _since(self, since: int) -> CacheChanges:
        # A block comes and goes by turns: after an even number of turns it is back where it was.
        turns = Counter(self._log[since - self._log_begin :])
        turned = [block for block, count in turns.items() if count % 2]
        added = tuple(block for block in turned if block in self._blocks)
        dropped = tuple(block for block in turned if block not in self._blocks)
        return CacheChanges(self.position, False, added, dropped)

    def _evict(self) -> None:
        while self._tokens > self._capacity_tokens:
            block, (tokens, key_part) = self._blocks.popitem(last=False)
            self._tokens -= tokens
            self._log.append(block)
            if key_part is not None:
                self._tokens_by_part[key_part] -= tokens
                if not self._tokens_by_part[key_part]:
                    del self._tokens_by_part[key_part]

    def _changed(self) -> None:
        self._told.clear()
        if len(self._log) > 2 * CHANGES_MAX:
            surplus = len(self._log) - CHANGES_MAX
            del self._log[:surplus]
            self._log_begin += surplus
