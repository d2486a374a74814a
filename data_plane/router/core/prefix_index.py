"""Which replica's cache holds which prefixes: what a router knows of the caches of one model's replicas.

A prompt's blocks are named by hashes of the block and everything before it, so equal names mean equal prefixes and a
prompt's cached part is as long as the run of leading blocks that a replica holds.

Two sources: the agents report what came to their caches and what went, whole first, and are the truth, whoever sent the
requests. This router's own dispatches are added at once, because the next turn of a session may come before the
report; should they never have begun, they are withdrawn, unless an agent has confirmed them.

A set of replicas is a whole number with a bit for each, so that a prompt is looked up at once for all of them.

Example: a holds blocks 1, 2, 3 and b holds 1. A prompt of blocks 1, 2, 4 finds b with one block and a with two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

BLOCKS_DEFAULT: Final = 4_096
"""Blocks kept of a replica that does not tell the size of its KV cache. Source: half a million tokens, as a 70B model
on four 80 GB devices has, in blocks of 128."""

BLOCK_TOKENS_MIN: Final = 128
"""A block of 1,024 bytes has at least this many tokens, whatever the language. An assumption: tokenizers
average well below eight bytes per token on text and code. Too low a figure only keeps more blocks."""

BLOCKS_MAX: Final = 65_536
"""Most blocks kept of one replica. Source: eight million tokens of KV."""

TOTAL_MAX: Final = 1_000_000
"""Most blocks kept of all replicas together, about 120 MB; each replica may have its part of them."""

# Evicted at once, as a share of what a replica may have: a dict forgets its oldest entries cheaply only in bulk.
_EVICTED_SHARE: Final = 16


class CacheChange(NamedTuple):
    """What an agent says of its cache.

    Attributes:
        whole: What it adds is all of its cache.
        added: Blocks that came, least recently used first.
        dropped: Blocks that went; they went last where one is in both.
    """

    whole: bool
    added: Sequence[int]
    dropped: Sequence[int]


class _Cache:
    """What one replica's cache holds.

    Attributes:
        bit: The replica in masks.
        blocks: Its blocks, least recently used first; True while nobody but this router's own dispatch says so.
        blocks_max: Most blocks by the size of its KV cache.
    """

    __slots__ = ("bit", "blocks", "blocks_max")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.blocks: dict[int, bool] = {}
        self.blocks_max = BLOCKS_DEFAULT


class PrefixIndex:
    """The caches of one model's replicas."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._caches: dict[str, _Cache] = {}
        self._used_bits = 0

    def __len__(self) -> int:
        """Blocks known, each once however many replicas hold it."""
        return len(self._holders)

    @property
    def replicas(self) -> int:
        """Replicas whose caches are kept."""
        return len(self._caches)

    def join(self, replica_id: str) -> int:
        """Begins to keep a replica's cache, empty at first.

        Returns:
            Its bit in masks: a power of two.
        """
        cache = self._caches.get(replica_id)
        if cache is None:
            bit = ~self._used_bits & (self._used_bits + 1)  # the lowest one that is free
            self._used_bits |= bit
            cache = self._caches[replica_id] = _Cache(bit)
        return cache.bit

    def leave(self, replica_id: str) -> None:
        """Forgets a replica."""
        cache = self._caches.pop(replica_id, None)
        if cache is not None:
            self._drop(cache, list(cache.blocks))
            self._used_bits ^= cache.bit

    def resize(self, replica_id: str, kv_capacity_tokens: int) -> None:
        """Notes the size of a replica's KV cache.

        Args:
            replica_id: The replica.
            kv_capacity_tokens: As reported; 0 and less where it is not known.
        """
        cache = self._caches.get(replica_id)
        if cache is not None:
            blocks = kv_capacity_tokens // BLOCK_TOKENS_MIN if kv_capacity_tokens > 0 else BLOCKS_DEFAULT
            cache.blocks_max = min(BLOCKS_MAX, max(1, blocks))
            self._bound(cache)

    def add(self, replica_id: str, blocks: Sequence[int]) -> list[int]:
        """A prompt is being sent to a replica: its blocks will be there, and are the most recently used.

        Args:
            replica_id: The replica.
            blocks: Of the prompt, front first.

        Returns:
            Those that are new there, for `withdraw`.
        """
        cache = self._caches.get(replica_id)
        if cache is None:
            return []
        held, holders, bit, new = cache.blocks, self._holders, cache.bit, []
        if 2 * (len(held) + len(blocks)) < self._most(cache):
            new = [block for block in blocks if block not in held]  # nothing is near being dropped: no need for order
            for block in new:
                held[block] = True
                holders[block] = holders[block] | bit if block in holders else bit
            return new
        # From the back: of one prompt the front is needed longest.
        for block in reversed(blocks):
            known = held.pop(block, None)
            if known is None:
                held[block] = True
                holders[block] = holders[block] | bit if block in holders else bit
                new.append(block)
            else:
                held[block] = known
        self._bound(cache)
        return new

    def withdraw(self, replica_id: str, blocks: Iterable[int]) -> None:
        """A prompt that was sent to a replica did not begin there.

        Args:
            replica_id: The replica.
            blocks: What `add` returned; those that an agent has confirmed stay.
        """
        cache = self._caches.get(replica_id)
        if cache is not None:
            self._drop(cache, [block for block in blocks if cache.blocks.get(block)])

    def change(self, replica_id: str, change: CacheChange) -> None:
        """An agent says what changed in its cache, least recently used first: of too many the last are kept.

        What it says twice, or drops without having had it, is no harm.
        """
        cache = self._caches.get(replica_id)
        if cache is None:
            return
        if change.whole:
            self._drop(cache, list(cache.blocks))
        held, holders, bit = cache.blocks, self._holders, cache.bit
        for block in change.added[-self._most(cache) :]:
            if block not in held:
                holders[block] = holders[block] | bit if block in holders else bit
            held[block] = False
        self._drop(cache, change.dropped)
        self._bound(cache)

    def match(self, blocks: Iterable[int], mask: int) -> list[tuple[int, int]]:
        """Looks a prompt up.

        Args:
            blocks: Of the prompt, front first.
            mask: The replicas that matter: their bits.

        Returns:
            Groups of replicas, as masks, with the number of leading blocks that each of a group holds, rising; who
            holds none is in no group.
        """
        groups: list[tuple[int, int]] = []
        holders = self._holders
        before, depth = -1, 0
        try:
            for block in blocks:
                found = holders[block]
                if found is not before:  # neighbours often have the same holder, and then the same object
                    before = found
                    left = mask & found
                    if left != mask:
                        if depth:
                            groups.append((mask ^ left, depth))
                        mask = left
                        if not left:
                            return groups
                depth += 1
        except KeyError:
            pass  # nobody holds that one
        if depth and mask:
            groups.append((mask, depth))
        return groups

    def _most(self, cache: _Cache) -> int:
        return min(cache.blocks_max, max(1, TOTAL_MAX // len(self._caches)))

    def _bound(self, cache: _Cache) -> None:
        """Drops the least recently used blocks where there are too many."""
        most, held = self._most(cache), cache.blocks
        if len(held) > most:
            self._drop(cache, list(islice(held, len(held) - most + most // _EVICTED_SHARE)))

    def _drop(self, cache: _Cache, blocks: Iterable[int]) -> None:
        held, holders, bit = cache.blocks, self._holders, cache.bit
        for block in blocks:
            if held.pop(block, None) is not None:
                left = holders[block] & ~bit
                if left:
                    holders[block] = left
                else:
                    del holders[block]
