from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.simulated.kv_cache import Holding, KvCache

BLOCK_TOKENS, PIECE_TOKENS = 16, 64


def admitted(cache: KvCache, tokens: int, prefix: tuple[int, ...] = (), reserve_blocks: int = 0) -> tuple[Holding, int]:
    room = cache.admit(tokens, prefix, reserve_blocks)
    assert room is not None
    return room


def test_the_worked_example_of_two_conversations() -> None:
    """Proves matching on numbers: B shares A's first two pieces of 64 tokens and takes room for the rest only."""
    cache = KvCache(100, BLOCK_TOKENS, PIECE_TOKENS)
    first, matched = admitted(cache, 3 * 64 + 20, (1, 2, 3))
    assert (matched, first.private, cache.available) == (0, 14, 86)  # 212 tokens: 13.25 blocks
    cache.share(first, (1, 2, 3))
    assert (first.private, first.shared, cache.available) == (2, [1, 2, 3], 86)
    second, matched = admitted(cache, 3 * 64, (1, 2, 9))
    assert (matched, second.private, second.shared, cache.available) == (128, 4, [1, 2], 82)
    assert cache.used_tokens == 18 * 16
    cache.release(first, 0)
    assert cache.used_tokens == (8 + 4) * 16  # pieces 1 and 2 are still B's; 3 is idle
    cache.release(second, 0)
    assert (cache.used_tokens, cache.available) == (0, 100)


def test_the_last_token_is_always_computed() -> None:
    """Proves that a prompt known to its end is matched up to the piece that holds its last token, and no further."""
    for tokens, matched_tokens in ((127, 64), (128, 64), (129, 128), (64, 0), (1, 0)):
        cache = KvCache(100, BLOCK_TOKENS, PIECE_TOKENS)
        holding, _ = admitted(cache, 200, (1, 2, 3))
        cache.share(holding, (1, 2, 3))
        assert admitted(cache, tokens, (1, 2, 3)[: tokens // 64])[1] == matched_tokens


def known(cache: KvCache, pieces: tuple[int, ...]) -> list[int]:
    """Which of these the cache knows: it takes those it does not from whoever offers them."""
    probe = Holding(0, [])
    cache.share(probe, pieces)
    return [piece for piece in pieces if piece not in probe.shared]


@pytest.mark.parametrize(
    ("taken_blocks", "left"),
    [(0, [11, 12, 21, 22]), (1, [11, 21, 22]), (4, [11, 21, 22]), (5, [21, 22]), (9, [21]), (13, [])],
)
def test_who_is_idle_longest_goes_first_and_the_end_of_a_prompt_before_its_beginning(
    taken_blocks: int, left: list[int]
) -> None:
    """Proves the order of eviction in a cache full of two idle prompts: the first one's end, its beginning, then the
    second one's end, and never more than is needed.
    """
    cache = KvCache(16, BLOCK_TOKENS, PIECE_TOKENS)
    for prefix in ((11, 12), (21, 22)):
        holding, _ = admitted(cache, 128, prefix)
        cache.share(holding, prefix)
        cache.release(holding, 0)
    if taken_blocks:
        admitted(cache, taken_blocks * BLOCK_TOKENS)
    assert known(cache, (11, 12, 21, 22)) == left


def test_what_is_used_again_is_idle_from_then_on() -> None:
    """Proves that a match renews a piece: the other prompt goes first then."""
    cache = KvCache(16, BLOCK_TOKENS, PIECE_TOKENS)
    for prefix in ((11,), (21,)):
        holding, _ = admitted(cache, 128, prefix)
        cache.share(holding, prefix)
        cache.release(holding, 0)
    holding, matched = admitted(cache, 65, (11,))
    assert matched == 64
    cache.release(holding, 0)
    admitted(cache, 9 * BLOCK_TOKENS)
    assert known(cache, (11, 21)) == [11]


def test_what_must_stay_free_counts() -> None:
    """Proves that a reserve is kept, that room is refused without taking anything, and that idle pieces are room."""
    cache = KvCache(10, BLOCK_TOKENS, PIECE_TOKENS)
    assert cache.admit(16 * 9, (), 2) is None
    assert not cache.fits(16 * 9, (), 2)
    assert cache.available == 10
    holding, _ = admitted(cache, 64, (1,))
    cache.share(holding, (1,))
    cache.release(holding, 0)
    assert admitted(cache, 160)[1] == 0
    assert cache.available == 0


class KvCacheConserves(RuleBasedStateMachine):
    """Proves: whatever is admitted, shared, grown and released, every block is available, private or in a shared piece
    that somebody refers to; a match is never the whole prompt; and in the end everything is available again.
    """

    BLOCKS = 60

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache(self.BLOCKS, BLOCK_TOKENS, PIECE_TOKENS)
        self.held: list[list[Any]] = []  # [holding, prefix, pieces computed, grown blocks]

    @rule(tokens=st.integers(1, 600), conversation=st.integers(0, 2), reserve=st.integers(0, 3))
    def admit(self, tokens: int, conversation: int, reserve: int) -> None:
        prefix = tuple(range(100 * conversation, 100 * conversation + tokens // PIECE_TOKENS))
        fits, available = self.cache.fits(tokens, prefix, reserve), self.cache.available
        room = self.cache.admit(tokens, prefix, reserve)
        assert fits == (room is not None)
        if room is None:
            assert self.cache.available == available
            return
        holding, matched = room
        assert matched <= tokens - 1
        assert matched == len(holding.shared) * PIECE_TOKENS
        assert self.cache.available >= reserve
        self.held.append([holding, prefix, matched // PIECE_TOKENS, 0])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), pieces=st.integers(1, 4))
    def share(self, data: st.DataObject, pieces: int) -> None:
        one = data.draw(st.sampled_from(self.held))
        self.cache.share(one[0], one[1][one[2] : one[2] + pieces])
        one[2] += pieces

    @precondition(lambda self: self.held and self.cache.available)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.held))
        self.cache.grow(1)
        one[3] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        one = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.cache.release(one[0], one[3])

    @invariant()
    def every_block_is_somewhere(self) -> None:
        private = sum(holding.private + grown for holding, _, _, grown in self.held)
        shared = {piece for holding, *_ in self.held for piece in holding.shared}
        assert all(holding.private >= 0 for holding, *_ in self.held)
        assert self.cache.available + private + len(shared) * PIECE_TOKENS // BLOCK_TOKENS == self.BLOCKS
        assert self.cache.used_tokens == (self.BLOCKS - self.cache.available) * BLOCK_TOKENS

    def teardown(self) -> None:
        for holding, _, _, grown in self.held:
            self.cache.release(holding, grown)
        assert self.cache.available == self.BLOCKS
        assert self.cache.admit(self.BLOCKS * BLOCK_TOKENS, (), 0) is not None


KvCacheConserves.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestKvCacheConserves = KvCacheConserves.TestCase
