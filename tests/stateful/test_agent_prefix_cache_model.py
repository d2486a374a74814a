"""The agent's prefix cache and whoever follows it, against a naive model: a list that is searched from scratch."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.agent.core import prefix_cache
from engines.agent.core.prefix_cache import PrefixCache

CAPACITY = 100
# A prompt is a path in a small tree; a block's name is the path to it.
PATHS = st.lists(st.integers(1, 3), min_size=1, max_size=5)


def names(path: list[int]) -> tuple[int, ...]:
    return tuple(int("".join(map(str, path[: end + 1]))) for end in range(len(path)))


class PrefixCacheModel(RuleBasedStateMachine):
    """Proves: what is held is what was used last, within the capacity, never a block without those before it; tokens
    are the exact sum in all and by part; every reader, however far behind, ends with exactly what is held."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = patch.object(prefix_cache, "CHANGES_MAX", 6)
        self.patch.start()
        self.cache = PrefixCache(CAPACITY)
        self.held: list[tuple[int, int, int]] = []  # (name, tokens, part), longest not used first
        self.readers: list[tuple[int | None, set[int]]] = []

    def teardown(self) -> None:
        self.patch.stop()

    @rule(path=PATHS, tokens=st.integers(1, 40), part=st.integers(0, 2))
    def fill(self, path: list[int], tokens: int, part: int) -> None:
        self.cache.fill(names(path), tokens, part)
        before = {name: (name, size, owner) for name, size, owner in self.held}
        mine = [before.get(name, (name, tokens, part)) for name in names(path)[: CAPACITY // tokens]]
        rest = [each for each in self.held if each not in mine]
        self.held = [*rest, *reversed(mine)]
        while sum(size for _, size, _ in self.held) > CAPACITY:
            self.held.pop(0)

    @rule(path=PATHS)
    def touch(self, path: list[int]) -> None:
        known = {name: (name, size, owner) for name, size, owner in self.held}
        mine = []
        for name in names(path):
            if name not in known:
                break
            mine.append(known[name])
        assert self.cache.touch(names(path)) == len(mine)
        self.held = [*(each for each in self.held if each not in mine), *reversed(mine)]

    @rule()
    def restart(self) -> None:
        self.cache.restart(CAPACITY)
        self.held = []

    @precondition(lambda self: len(self.readers) < 4)
    @rule()
    def a_reader_comes(self) -> None:
        self.readers.append((None, set()))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        self.read_one(data.draw(st.integers(0, len(self.readers) - 1)))

    def read_one(self, which: int) -> None:
        position, known = self.readers[which]
        changes = self.cache.changes(position)
        if changes.whole:
            known = set(changes.added)
        else:
            assert not known & set(changes.added)
            assert known >= set(changes.dropped)
            known = (known | set(changes.added)) - set(changes.dropped)
        assert known == {name for name, _, _ in self.held}
        self.readers[which] = (changes.position, known)
        assert not self.cache.changes(changes.position)

    @invariant()
    def it_is_the_naive_one(self) -> None:
        assert list(self.cache) == [name for name, _, _ in self.held]
        assert self.cache.tokens == sum(size for _, size, _ in self.held) <= CAPACITY
        parts = {part: sum(size for _, size, owner in self.held if owner == part) for part in range(3)}
        assert dict(self.cache.tokens_by_part) == {part: tokens for part, tokens in parts.items() if tokens}

    @invariant()
    def no_block_without_those_before_it(self) -> None:
        for name in self.cache:
            assert name < 10 or name // 10 in self.cache


PrefixCacheModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPrefixCacheModel = PrefixCacheModel.TestCase
