"""The paged KV cache of one simulated replica, with prefix sharing. Pure counting: blocks have no contents.

The cache is divided into blocks of `block_tokens`. A running sequence owns *private* blocks and refers to *shared*
ones: whole leading pieces of its prompt that the cache knows by id. A shared piece nobody refers to any more stays as
*idle* until its room is needed; the one idle longest goes first, and of one prompt the end before the beginning, so
that what is left can still be matched. This is what vLLM's automatic prefix caching does, on coarser pieces.

    total = free + private of all sequences + shared in use + idle

Example with pieces of 512 tokens: A's prompt is pieces (1, 2, 3) and 100 tokens more. While it is computed its three
pieces become shared. B's prompt is (1, 2, 9): it matches 1,024 tokens and computes the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Holding:
    """What one running sequence has of the cache. Only `KvCache` changes it.

    Attributes:
        private: Blocks of its own.
        shared: Pieces it refers to.
    """

    __slots__ = ("private", "shared")

    def __init__(self, private: int, shared: list[int]) -> None:
        self.private = private
        self.shared = shared


class KvCache:
    """Counts blocks and remembers prompt pieces.

    Args:
        blocks: Size of the cache, blocks.
        block_tokens: Tokens per block.
        piece_tokens: Tokens per shareable piece of a prompt, a multiple of `block_tokens`.
    """

    def __init__(self, blocks: int, block_tokens: int, piece_tokens: int) -> None:
        self.blocks = blocks
        self._block_tokens = block_tokens
        self._piece_tokens = piece_tokens
        self._piece_blocks = piece_tokens // block_tokens
        self._free = blocks
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # longest idle first

    @property
    def available(self) -> int:
        """Blocks that can be taken now, idle pieces included."""
        return self._free + len(self._idle) * self._piece_blocks

    @property
    def used_tokens(self) -> int:
        """What running sequences hold, whole blocks, in tokens; idle pieces do not count."""
        return (self.blocks - self.available) * self._block_tokens

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens`."""
        return -(-tokens // self._block_tokens)

    def admit(self, tokens: int, prefix: Sequence[int], reserve_blocks: int) -> tuple[Holding, int] | None:
        """Takes the room of a sequence, matching the front of its prompt.

        Args:
            tokens: What it will have computed before its next token comes out, 1 or more.
            prefix: Ids of its prompt's leading pieces, front first.
            reserve_blocks: Blocks that must stay available.

        Returns:
            Its holding and the tokens that need not be computed, fewer than `tokens`; None when there is no room.
        """
        matched, fresh, fits = self._match(tokens, prefix, reserve_blocks)
        if not fits:
            return None
        shared = list(prefix[:matched])
        for piece in shared:
            if self._references[piece] == 0:
                del self._idle[piece]
            self._references[piece] += 1
        self._take(fresh)
        return Holding(fresh, shared), matched * self._piece_tokens

    def fits(self, tokens: int, prefix: Sequence[int], reserve_blocks: int) -> bool:
        """Whether `admit` would find room. As long as nothing is released, one that does not fit never will."""
        return self._match(tokens, prefix, reserve_blocks)[2]

    def _match(self, tokens: int, prefix: Sequence[int], reserve_blocks: int) -> tuple[int, int, bool]:
        """Returns the pieces that are known, the blocks needed beside them, and whether those can be taken."""
        matched, matched_idle = 0, 0
        if prefix:
            most = (tokens - 1) // self._piece_tokens  # the last token is always computed: it yields the next one
            for piece in prefix[:most]:
                references = self._references.get(piece)
                if references is None:
                    break
                matched += 1
                matched_idle += references == 0
        fresh = self.blocks_for(tokens) - matched * self._piece_blocks
        return matched, fresh, fresh + reserve_blocks <= self.available - matched_idle * self._piece_blocks

    def share(self, holding: Holding, pieces: Sequence[int]) -> None:
        """Makes computed pieces of a prompt known; those known already stay private a second time."""
        for piece in pieces:
            if piece not in self._references:
                self._references[piece] = 1
                holding.shared.append(piece)
                holding.private -= self._piece_blocks

    def grow(self, blocks: int) -> None:
        """Takes blocks for running sequences to write on; `available` must allow it. They are given back by
        `release`'s argument."""
        self._take(blocks)

    def release(self, holding: Holding, grown_blocks: int) -> None:
        """Gives everything of a sequence back; its shared pieces stay as idle when nobody else refers to them.

        Args:
            holding: From `admit`.
            grown_blocks: Blocks it has grown by since.
        """
        self._free += holding.private + grown_blocks
        for piece in reversed(holding.shared):
            self._references[piece] -= 1
            if self._references[piece] == 0:
                self._idle[piece] = None

    def _take(self, blocks: int) -> None:
        while self._free < blocks:
            piece, _ = self._idle.popitem(last=False)
            del self._references[piece]
            self._free += self._piece_blocks
        self._free -= blocks
