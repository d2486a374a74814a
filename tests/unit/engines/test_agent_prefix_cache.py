from __future__ import annotations

import pytest

from engines.agent.core import prefix_cache
from engines.agent.core.prefix_cache import BLOCKS_MAX, CacheChanges, PrefixCache


def test_the_worked_example() -> None:
    """Proves the documentation's example: what was used again stays, and the end of a prompt goes before its
    beginning."""
    cache = PrefixCache(30)
    cache.fill((1, 2), 10)
    cache.fill((1, 3), 10)
    assert set(cache) == {1, 2, 3}
    cache.fill((7,), 10)
    assert set(cache) == {1, 3, 7}
    cache.fill((8,), 10)
    assert set(cache) == {1, 7, 8}
    assert cache.tokens == 30


def test_use_keeps_what_is_used() -> None:
    """Proves that a request that goes in keeps what it found, and that it finds whole beginnings only."""
    cache = PrefixCache(40)
    cache.fill((1, 2), 10)
    cache.fill((5, 6), 10)
    assert cache.touch((1, 2, 3)) == 2
    assert cache.touch((9, 2)) == 0
    cache.fill((7, 8), 10)
    assert set(cache) == {1, 2, 7, 8}


def test_a_prompt_larger_than_the_cache_leaves_its_beginning() -> None:
    """Proves that the part that can be matched again is what stays of a prompt that does not fit."""
    cache = PrefixCache(30)
    cache.fill((1, 2, 3, 4, 5), 10)
    assert set(cache) == {1, 2, 3}


@pytest.mark.parametrize("capacity", [0, 5])
def test_an_engine_without_a_cache_holds_nothing(capacity: int) -> None:
    """Proves that no cache, and one smaller than a block, hold nothing and say so."""
    cache = PrefixCache(capacity)
    cache.fill((1, 2), 10)
    assert (len(cache), cache.tokens, dict(cache.tokens_by_part)) == (0, 0, {})
    assert cache.changes(None) == CacheChanges(0, True, (), ())


def test_tokens_belong_to_the_part_that_brought_them() -> None:
    """Proves that tokens are counted once, by part of the key space, and go with their blocks."""
    cache = PrefixCache(50)
    cache.fill((1, 2), 10, key_part=4)
    cache.fill((1, 3), 10, key_part=5)
    cache.fill((9,), 10)
    assert dict(cache.tokens_by_part) == {4: 20, 5: 10}
    cache.fill((11, 12, 13), 10, key_part=6)
    assert dict(cache.tokens_by_part) == {4: 10, 6: 30}, "2 went, then 3"
    assert cache.tokens == 50


def test_readers_get_what_changed_since_they_read() -> None:
    """Proves that a reader gets everything once and then only the difference, that what came and went is not told, and
    that a second reader costs no second computation."""
    cache = PrefixCache(30)
    cache.fill((1, 2), 10)
    first = cache.changes(None)
    assert (first.whole, set(first.added), first.dropped) == (True, {1, 2}, ())
    assert not cache.changes(first.position)
    cache.fill((7,), 10)
    cache.fill((8,), 10)
    cache.fill((9,), 10)
    cache.fill((7,), 10)
    second = cache.changes(first.position)
    assert (second.whole, set(second.added), set(second.dropped)) == (False, {7, 8, 9}, {1, 2})
    assert cache.changes(first.position) is second
    cache.fill((1,), 10)
    assert set(cache.changes(first.position).dropped) == {2}


def test_a_reader_that_fell_behind_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that what is remembered for readers is bounded, and that whoever needs more than that is told all."""
    monkeypatch.setattr(prefix_cache, "CHANGES_MAX", 10)
    cache = PrefixCache(50)
    behind = cache.changes(None).position
    for block in range(100):
        cache.fill((block,), 10)
        assert len(cache._log) <= 2 * 10 + 2
    changes = cache.changes(behind)
    assert (changes.whole, set(changes.added)) == (True, set(cache))
    assert cache.changes(10**9).whole, "a position there never was"


def test_a_restart_forgets_and_tells_everybody() -> None:
    """Proves that an engine that starts again has nothing cached, and that every reader learns it."""
    cache = PrefixCache(100)
    cache.fill((1, 2), 10, key_part=3)
    position = cache.changes(None).position
    cache.restart(200)
    assert (cache.tokens, dict(cache.tokens_by_part)) == (0, {})
    changes = cache.changes(position)
    assert (changes.whole, changes.added) == (True, ())
    cache.fill((5,), 10)
    assert cache.changes(changes.position) == CacheChanges(cache.position, False, (5,), ())


def test_nonsense_does_no_harm() -> None:
    """Proves that too many blocks are ignored beyond the most there may be, and that repeated names and blocks of no
    size count once and as one token."""
    cache = PrefixCache(10**9)
    cache.fill(tuple(range(10 * BLOCKS_MAX)), 0)
    assert (len(cache), cache.tokens) == (BLOCKS_MAX, BLOCKS_MAX)
    assert cache.touch(tuple(range(10 * BLOCKS_MAX))) == BLOCKS_MAX
    cache.restart(10**9)
    cache.fill((5, 5, 5), -7)
    assert (len(cache), cache.tokens) == (1, 1)
