"""The choice of a replica."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from data_plane.router.core.pick import Candidate, Health, Pick, choose_pool, hash64, pick


def candidate(
    name: str, *, prefill: int = 0, decode: int = 0, capacity: int = 100_000, health: Health = Health.READY
) -> Candidate:
    return Candidate(name, hash64(name), health, capacity, prefill, decode)


def choose(
    candidates: list[Candidate],
    *,
    prefill: int = 100,
    decode: int = 100,
    session: str = "",
    request: str = "r",
    excluded: tuple[str, ...] = (),
) -> Pick | None:
    return pick(
        candidates,
        prefill_milli_mu=prefill,
        decode_milli_mu=decode,
        session_id=session,
        request_id=request,
        excluded=excluded,
    )


def name_of(chosen: Pick | None) -> str:
    assert chosen is not None
    return chosen.replica_id


def test_pending_prefill_decides_and_decode_counts_less() -> None:
    """1,000 mMU of prefill weigh more than 3,000 of decode, and less than 4,000."""
    assert name_of(choose([candidate("a", prefill=1000), candidate("b", decode=3000)])) == "b"
    assert name_of(choose([candidate("a", prefill=1000), candidate("b", decode=4000)])) == "a"


def test_capacity_divides_the_load() -> None:
    """A replica twice as fast may carry twice the load, this request included."""
    assert name_of(choose([candidate("a", prefill=1000), candidate("b", prefill=1500, capacity=200_000)])) == "b"
    assert name_of(choose([candidate("a", prefill=100, capacity=10_000), candidate("b", prefill=500)])) == "b"


def test_only_ready_replicas_that_did_not_fail_the_request() -> None:
    """Draining and doubtful replicas are left out, and those excluded."""
    pool = [
        candidate("a"),
        candidate("b"),
        candidate("c", health=Health.CLOSED),
        candidate("d", health=Health.DOUBTFUL),
    ]
    assert {name_of(choose(pool, request=f"r{i}")) for i in range(50)} == {"a", "b"}
    assert name_of(choose(pool, excluded=("a",))) == "b"
    assert choose(pool, excluded=("a", "b")) is None
    assert choose([]) is None
    assert choose([candidate("a", health=Health.CLOSED)]) is None


def test_panic_ignores_health_below_half_but_never_opens_what_is_closed() -> None:
    """One healthy of three: everybody not closed is used, and the pick says why; one of two is no panic."""
    pool = [candidate("a"), *(candidate(name, health=Health.DOUBTFUL) for name in "bc")]
    pool.append(candidate("d", health=Health.CLOSED))
    picks = [choose(pool, request=f"r{i}") for i in range(60)]
    assert {name_of(each) for each in picks} == {"a", "b", "c"}
    assert all(each and each.panic for each in picks)
    pool = [candidate("a"), candidate("b", health=Health.DOUBTFUL)]
    assert {name_of(choose(pool, request=f"r{i}")) for i in range(20)} == {"a"}


def test_ties_are_broken_by_the_request_the_same_way_everywhere() -> None:
    """Equal loads spread requests evenly, and one request goes to one replica whatever the order of the pool."""
    pool = [candidate(f"r{i}") for i in range(8)]
    spread = Counter(name_of(choose(pool, request=f"q{i}")) for i in range(4000))
    assert min(spread.values()) > 350
    for i in range(20):
        assert choose(pool, request=f"q{i}") == choose(pool[::-1], request=f"q{i}")


def test_a_session_has_a_home_and_leaves_it_only_under_load() -> None:
    """As much as a warm prefix saves, the home may be busier; beyond a quarter above the mean it is left."""
    idle = [candidate(f"r{i}") for i in range(6)]
    home = name_of(choose(idle, session="s", request="any"))
    assert all(choose(idle, session="s", request=f"q{i}") == Pick(home, False, True) for i in range(30))
    busier = [candidate(each.replica_id, prefill=90 if each.replica_id == home else 0) for each in idle]
    assert name_of(choose(busier, session="s")) == home
    hot = [candidate(each.replica_id, prefill=5000 if each.replica_id == home else 1000) for each in idle]
    assert name_of(choose(hot, session="s", prefill=100_000)) == home
    assert name_of(choose(hot, session="s", prefill=1000)) != home


def test_few_sessions_move_when_a_replica_leaves() -> None:
    """Rendezvous hashing: only the sessions of the lost replica get a new home."""
    pool = [candidate(f"r{i}") for i in range(5)]
    before = {f"s{i}": name_of(choose(pool, session=f"s{i}")) for i in range(300)}
    after = {session: name_of(choose(pool[:-1], session=session)) for session in before}
    moved = [session for session in before if before[session] != after[session]]
    assert moved
    assert all(before[session] == "r4" for session in moved)


def test_the_pool_is_the_subset_or_everything_where_that_is_gone() -> None:
    """An assignment that names only replicas that are gone does not refuse traffic."""
    assert choose_pool(["b", "x"], {"a", "b"}) == ["b"]
    assert choose_pool(["x"], {"b", "a"}) == ["a", "b"]
    assert choose_pool([], {"a"}) == ["a"]


loads = st.lists(
    st.tuples(
        st.integers(0, 2) | st.integers(0, 10**6),
        st.just(0) | st.integers(0, 10**6),
        st.sampled_from([0, 50_000, 100_000]),
    ),
    min_size=1,
    max_size=12,
)


@given(loads=loads, prefill=st.integers(0, 10**5))
def test_without_a_session_nothing_cheaper_was_left(loads: list[tuple[int, int, int]], prefill: int) -> None:
    """The pick has the lowest score of all eligible, computed naively."""
    pool = [candidate(f"r{i}", prefill=p, decode=d, capacity=c) for i, (p, d, c) in enumerate(loads)]
    chosen = name_of(choose(pool, prefill=prefill))
    scores = {
        each.replica_id: (each.pending_prefill_milli_mu + prefill + 0.3 * each.decode_milli_mu)
        / (each.capacity_milli_mu_per_minute or 100_000)
        for each in pool
    }
    assert scores[chosen] <= min(scores.values()) * (1 + 1e-12)


@given(loads=loads, session=st.sampled_from(["", "s", "t"]), most=st.integers(1, 8))
def test_the_pick_remembers_the_best_with_the_winner_first(
    loads: list[tuple[int, int, int]], session: str, most: int
) -> None:
    """As many as were asked for, none worse than one left out, the winner never beaten; asking changes no choice."""
    pool = [candidate(f"r{i}", prefill=p, decode=d, capacity=c) for i, (p, d, c) in enumerate(loads)]
    asked = {"prefill_milli_mu": 70, "decode_milli_mu": 10, "session_id": session, "request_id": "q"}
    chosen = pick(pool, **asked, weighed_max=most)  # type: ignore[arg-type]  # test shorthand
    everything = pick(pool, **asked, weighed_max=len(pool))  # type: ignore[arg-type]  # test shorthand
    assert chosen is not None
    assert everything is not None
    assert chosen == pick(pool, **asked) == everything  # type: ignore[arg-type]  # test shorthand
    assert chosen.candidate_count == len(pool)
    names = [weighed[0] for weighed in chosen.weighed]
    assert names[0] == chosen.replica_id
    assert len(names) == len(set(names)) == min(most, len(pool))
    scores = {weighed[0]: weighed[1] for weighed in everything.weighed}
    assert scores[names[0]] == min(scores.values())
    assert max(scores[name] for name in names) <= min(
        (score for name, score in scores.items() if name not in names), default=float("inf")
    )
