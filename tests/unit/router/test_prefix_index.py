"""What a router knows of the replicas' prefix caches."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.router.core import prefix_index
from data_plane.router.core.prefix_index import CacheChange, PrefixIndex

ALL = -1


def depths(index: PrefixIndex, bits: dict[str, int], blocks: tuple[int, ...]) -> dict[str, int]:
    """Leading blocks by replica that holds any, as found."""
    mask = 0
    for bit in bits.values():
        mask |= bit
    found = {}
    for group, depth in index.match(blocks, mask):
        for name, bit in bits.items():
            if group & bit:
                assert name not in found
                found[name] = depth
    return found


def test_a_prompt_finds_who_holds_its_beginning() -> None:
    """As in the module's example; what only others hold does not count, nor what lies beyond a gap."""
    index = PrefixIndex()
    bits = {name: index.join(name) for name in "ab"}
    index.add("a", (1, 2, 3))
    index.add("b", (1,))
    assert depths(index, bits, (1, 2, 4)) == {"a": 2, "b": 1}
    assert depths(index, {"b": bits["b"]}, (1, 2, 4)) == {"b": 1}
    assert depths(index, bits, (9, 1, 2)) == {}
    assert depths(index, bits, ()) == {}


def test_the_agents_word_is_the_truth() -> None:
    """What another router sent there is known, what went is gone, and a whole cache replaces what was believed."""
    index = PrefixIndex()
    bits = {"a": index.join("a")}
    index.change("a", CacheChange(True, (1, 2, 3), ()))
    assert depths(index, bits, (1, 2, 3)) == {"a": 3}
    index.change("a", CacheChange(False, (4,), (3,)))
    assert depths(index, bits, (1, 2, 3)) == {"a": 2}
    index.change("a", CacheChange(True, (7,), ()))
    assert (depths(index, bits, (1,)), depths(index, bits, (7,)), len(index)) == ({}, {"a": 1}, 1)


def test_a_dispatch_that_never_began_is_withdrawn_unless_confirmed() -> None:
    """Only what nobody but the dispatch vouches for goes with it."""
    index = PrefixIndex()
    bits = {"a": index.join("a")}
    index.change("a", CacheChange(True, (1,), ()))
    new = index.add("a", (1, 2, 3))
    assert sorted(new) == [2, 3]
    index.change("a", CacheChange(False, (2,), ()))
    index.withdraw("a", new)
    assert depths(index, bits, (1, 2, 3)) == {"a": 2}


def test_a_replica_that_is_forgotten_leaves_nothing() -> None:
    """Its blocks are gone and its bit serves another one, which holds nothing at first."""
    index = PrefixIndex()
    bits = {name: index.join(name) for name in "abc"}
    for name in "abc":
        index.add(name, (1, 2))
    index.leave("b")
    index.leave("b")
    assert index.join("d") == bits["b"]
    assert depths(index, {"a": bits["a"], "d": bits["b"]}, (1, 2)) == {"a": 2}
    for name in "acd":
        index.leave(name)
    assert (len(index), index.replicas) == (0, 0)
    index.add("a", (1,))
    index.change("a", CacheChange(True, (1,), ()))
    index.resize("a", 5)
    assert len(index) == 0


def test_nonsense_from_an_agent_loses_nothing_of_the_others() -> None:
    """Blocks added twice, dropped unknown or in millions: other replicas' caches stay as they were."""
    index = PrefixIndex()
    bits = {name: index.join(name) for name in "ab"}
    index.add("b", (1, 2, 3))
    index.change("a", CacheChange(False, (1, 1, 1), (8, 9, 9)))
    assert depths(index, bits, (1, 2)) == {"a": 1, "b": 2}
    index.resize("a", 100 * prefix_index.BLOCK_TOKENS_MIN)
    index.change("a", CacheChange(False, range(10, 1_000_000), range(2_000_000, 2_100_000)))
    assert depths(index, {"b": bits["b"]}, (1, 2, 3)) == {"b": 3}
    assert len(index) <= 103


def test_a_cache_is_as_large_as_the_replicas_and_keeps_what_was_used_last() -> None:
    """Beyond its size the least recently used blocks go; the front of a prompt longer than its back."""
    index = PrefixIndex()
    bits = {"a": index.join("a")}
    index.resize("a", 32 * prefix_index.BLOCK_TOKENS_MIN)
    hot = tuple(range(8))
    for number in range(1, 40):
        index.add("a", hot)
        index.add("a", tuple(range(100 * number, 100 * number + 4)))
        assert len(index) <= 32
    assert depths(index, bits, hot) == {"a": 8}
    assert depths(index, bits, (100,)) == {}
    index.resize("a", -5)
    index.add("a", tuple(range(10_000, 10_000 + prefix_index.BLOCKS_DEFAULT)))
    assert len(index) <= prefix_index.BLOCKS_DEFAULT


def test_of_a_cache_beyond_its_part_the_most_recently_used_blocks_are_kept() -> None:
    """Agents say the least recently used first: what goes is what is cold, not what the next prompt begins with."""
    index = PrefixIndex()
    bits = {"a": index.join("a")}
    index.resize("a", 32 * prefix_index.BLOCK_TOKENS_MIN)
    for whole in (True, False):
        index.change("a", CacheChange(whole, list(range(1, 101)), ()))
        assert depths(index, bits, (100,)) == depths(index, bits, (69,)) == {"a": 1}
        assert depths(index, bits, (68,)) == {}
        assert len(index) == 32


def test_memory_is_bounded_at_512_replicas() -> None:
    """However large their caches are, together they hold no more than the index may."""
    index = PrefixIndex()
    bits = {f"r{number}": index.join(f"r{number}") for number in range(512)}
    assert len(set(bits.values())) == 512
    share = prefix_index.TOTAL_MAX // 512
    for number, name in enumerate(list(bits)[:8]):
        index.resize(name, 10**12)
        index.change(name, CacheChange(True, range(number * 10**6, number * 10**6 + 10**5), ()))
    assert len(index) <= 8 * share
    index.add("r511", (10**5 - 1,))
    assert depths(index, bits, (10**5 - 1,)) == {"r0": 1, "r511": 1}


operations = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "add", "change", "whole", "withdraw"]),
        st.sampled_from("abc"),
        st.lists(st.integers(0, 6), max_size=6),
        st.lists(st.integers(0, 6), max_size=4),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(history=operations, prompt=st.lists(st.integers(0, 6), max_size=6))
def test_the_index_is_what_a_set_per_replica_would_be(
    history: list[tuple[str, str, list[int], list[int]]], prompt: list[int]
) -> None:
    """After any history a prompt finds the same replicas as a naive model with one dict per replica."""
    index, bits = PrefixIndex(), dict[str, int]()
    naive: dict[str, dict[int, bool]] = {}
    sent: dict[str, list[int]] = {name: [] for name in "abc"}
    for what, name, blocks, others in history:
        held = naive.get(name)
        match what:
            case "join":
                bits[name] = index.join(name)
                naive.setdefault(name, {})
            case "leave":
                index.leave(name)
                bits.pop(name, None)
                naive.pop(name, None)
            case "add":
                unique = list(dict.fromkeys(blocks))
                sent[name] = index.add(name, unique)
                if held is not None:
                    naive[name] = {**dict.fromkeys(unique, True), **held}
            case "withdraw":
                index.withdraw(name, sent[name])
                for block in sent[name] if held is not None else ():
                    if naive[name].get(block):
                        del naive[name][block]
            case _:
                index.change(name, CacheChange(what == "whole", blocks, others))
                if held is not None:
                    kept = {} if what == "whole" else held
                    kept = {**kept, **dict.fromkeys(blocks, False)}
                    naive[name] = {block: mine for block, mine in kept.items() if block not in others}
        expected = {}
        for replica, its in naive.items():
            depth = next((at for at, block in enumerate(prompt) if block not in its), len(prompt))
            if depth:
                expected[replica] = depth
        assert depths(index, bits, tuple(prompt)) == expected
        assert len(index) == len({block for its in naive.values() for block in its})
