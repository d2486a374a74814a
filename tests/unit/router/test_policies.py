"""The choice of a replica, by every rule."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.router.core.candidate import STALL_WEIGHT, Candidate, Health, hash64
from data_plane.router.core.policies.cost import NEAR_TIE, Cost
from data_plane.router.core.policies.policy import Ask, Pick, Policy, has_room
from data_plane.router.core.policies.registry import DEFAULT_POLICY, POLICIES, make_policy, policy_name
from data_plane.router.core.pool import Pool, choose_pool
from data_plane.router.core.prefix_index import PrefixIndex
from fairlead.admin.v1 import admin_pb2

BLOCKS = tuple(range(1, 11))


def candidate(
    name: str,
    *,
    prefill: int = 0,
    decode: int = 0,
    queued: int = 0,
    requests: int = 0,
    capacity: int = 100_000,
    health: Health = Health.READY,
    in_flight: int = 0,
) -> Candidate:
    made = Candidate(name, hash64(name), health, capacity, prefill, decode, queued, requests)
    made.in_flight = in_flight
    return made


def ask(
    *,
    prefill: int = 100,
    decode: int = 100,
    blocks: tuple[int, ...] = (),
    session: str = "",
    request: str = "r",
    tenant: str = "t",
    excluded: tuple[str, ...] = (),
    most: int = 0,
) -> Ask:
    return Ask(prefill, decode, 1000, blocks, 100.0, session, request, tenant, excluded, most)


def name_of(chosen: Pick | None) -> str:
    assert chosen is not None
    return chosen.replica_id


def facts(chosen: Pick | None) -> dict[str, object]:
    """Everything that a choice says."""
    assert chosen is not None
    names = ("replica_id", "policy", "panic", "sticky", "uncached_prefill_milli_mu", "expected_first_token_s")
    return {name: getattr(chosen, name) for name in (*names, "ranking", "candidate_count", "cached_tokens")}


def choose(candidates: list[Candidate], asked: Ask | None = None, index: PrefixIndex | None = None) -> Pick | None:
    return Cost().pick(asked or ask(), Pool(candidates, index))


def holding(**blocks: tuple[int, ...]) -> tuple[PrefixIndex, dict[str, Candidate]]:
    """Idle replicas, by name, whose caches hold these blocks."""
    index, made = PrefixIndex(), {}
    for name, held in blocks.items():
        made[name] = candidate(name)
        made[name].cache_bit = index.join(name)
        index.add(name, held)
    return index, made


def every_policy() -> list[Policy]:
    return [make_policy(name, Random(1)) for name in POLICIES]


def test_pending_prefill_decides_and_decode_counts_less() -> None:
    """1,000 mMU of prefill weigh more than 3,000 of decode, running or waiting, and less than 4,000."""
    assert name_of(choose([candidate("a", prefill=1000), candidate("b", decode=3000)])) == "b"
    assert name_of(choose([candidate("a", prefill=1000), candidate("b", decode=4000)])) == "a"
    assert name_of(choose([candidate("a", prefill=1000), candidate("b", queued=3000)])) == "b"
    assert name_of(choose([candidate("a", prefill=1000), candidate("b", queued=4000)])) == "a"


def test_capacity_divides_the_load() -> None:
    """A replica twice as fast may carry twice the load, this request included."""
    assert name_of(choose([candidate("a", prefill=1000), candidate("b", prefill=1500, capacity=200_000)])) == "b"
    assert name_of(choose([candidate("a", prefill=100, capacity=10_000), candidate("b", prefill=500)])) == "b"


def test_long_prompts_go_where_few_requests_are() -> None:
    """Ten requests in service make a long prompt avoid a replica that a short one still prefers."""
    pool = [candidate("busy", requests=10), candidate("queued", prefill=500)]
    assert name_of(choose(pool, ask(prefill=100))) == "busy"
    assert name_of(choose(pool, ask(prefill=1000))) == "queued"


def test_a_prefix_in_the_cache_is_counted_off() -> None:
    """Whoever holds 9 of 10 blocks may have nearly a whole prompt more to do; the pick says what is left to compute."""
    index, made = holding(a=BLOCKS[:9], b=(), c=())
    made["a"].carry(80, 0)
    picked = choose(list(made.values()), ask(blocks=BLOCKS), index)
    assert picked is not None
    assert (picked.replica_id, picked.sticky, picked.uncached_prefill_milli_mu, picked.cached_tokens) == (
        ("a", True, 10, 900)
    )
    assert picked.expected_first_token_s == pytest.approx(90 * 60 / 100_000)
    made["a"].carry(120, 0)
    picked = choose(list(made.values()), ask(blocks=BLOCKS), index)
    assert picked is not None
    assert (picked.sticky, picked.uncached_prefill_milli_mu, picked.cached_tokens) == (False, 100, 0)


def test_a_prefix_makes_no_hot_spot() -> None:
    """Beyond a quarter above the mean and one request, a cache is no advantage, however much it would save."""
    index, made = holding(a=BLOCKS, b=(), c=())
    huge = ask(prefill=1000, decode=0, blocks=BLOCKS)
    for load, home in ((1400, True), (2600, False)):
        made["a"].carry(load, 0)
        made["b"].carry(900, 0)
        made["c"].carry(900, 0)
        # the limit is 1.25 x (load + 1800) / 3 + 1000: 2333 and 2833
        assert (name_of(choose(list(made.values()), huge, index)) == "a") is home


def test_what_everybody_holds_decides_nothing() -> None:
    """A shared beginning shortens the prompt everywhere: the load decides, and nobody is sticky."""
    index, made = holding(a=BLOCKS[:5], b=BLOCKS[:5])
    made["a"].carry(50, 0)
    picked = choose(list(made.values()), ask(blocks=BLOCKS), index)
    assert picked is not None
    assert (picked.replica_id, picked.sticky, picked.uncached_prefill_milli_mu) == ("b", False, 50)
    index.add("a", BLOCKS)
    picked = choose(list(made.values()), ask(blocks=BLOCKS, most=2), index)
    assert picked is not None
    assert [(each[0], each[7]) for each in picked.weighed] == [("b", 500), ("a", 1000)]
    made["a"].carry(40, 0)
    assert name_of(choose(list(made.values()), ask(blocks=BLOCKS), index)) == "a"


def test_a_session_returns_as_long_as_its_replica_is_not_overloaded() -> None:
    """Its first turn is placed alike by every router; later ones follow the cache."""
    index, made = holding(**{f"r{number}": () for number in range(6)})
    pool = Pool(made.values(), index)
    first = Cost().pick(ask(blocks=BLOCKS[:3], session="s", request="one"), pool)
    other = Cost().pick(ask(blocks=BLOCKS[:3], session="s", request="two"), Pool(list(made.values())[::-1], index))
    assert facts(first) == facts(other)
    index.add(name_of(first), BLOCKS[:3])
    made[name_of(first)].carry(20, 10)
    second = Cost().pick(ask(blocks=BLOCKS, session="s", request="three"), pool)
    assert second is not None
    assert (second.replica_id, second.sticky) == (name_of(first), True)


@pytest.mark.parametrize("policy", every_policy(), ids=lambda policy: policy.name)
def test_only_ready_replicas_that_are_not_excluded(policy: Policy) -> None:
    """Every rule leaves out draining and doubtful replicas and those excluded, and says None when none is left."""
    pool = Pool(
        [
            candidate("a"),
            candidate("b"),
            candidate("c", health=Health.CLOSED),
            candidate("d", health=Health.DOUBTFUL),
        ]
    )
    assert {name_of(policy.pick(ask(request=f"r{i}"), pool)) for i in range(60)} == {"a", "b"}
    assert name_of(policy.pick(ask(excluded=("a",)), pool)) == "b"
    assert policy.pick(ask(excluded=("a", "b")), pool) is None
    assert policy.pick(ask(), Pool(())) is None
    assert policy.pick(ask(), Pool([candidate("a", health=Health.CLOSED)])) is None


@pytest.mark.parametrize("policy", every_policy(), ids=lambda policy: policy.name)
def test_panic_ignores_health_below_half_but_never_opens_what_is_closed(policy: Policy) -> None:
    """One healthy of three: everybody not closed is used, and the pick says why; one of two is no panic."""
    doubted = [candidate(name, health=Health.DOUBTFUL) for name in "bc"]
    pool = Pool([candidate("a"), *doubted, candidate("d", health=Health.CLOSED)])
    picks = [policy.pick(ask(request=f"r{i}"), pool) for i in range(90)]
    assert {name_of(each) for each in picks} == {"a", "b", "c"}
    assert all(each and each.panic for each in picks)
    pool = Pool([candidate("a"), candidate("b", health=Health.DOUBTFUL)])
    assert {name_of(policy.pick(ask(request=f"r{i}"), pool)) for i in range(20)} == {"a"}


@pytest.mark.parametrize("policy", every_policy(), ids=lambda policy: policy.name)
@pytest.mark.parametrize("count", [1, 512])
def test_any_number_of_replicas_without_capacity_or_load(policy: Policy, count: int) -> None:
    """One replica or 512, all of capacity 0 (which counts as the definition's): somebody is picked, and told so."""
    pool = Pool([candidate(f"r{number}", capacity=0) for number in range(count)])
    picked = policy.pick(ask(prefill=0, decode=0, most=8), pool)
    assert picked is not None
    assert (picked.policy, picked.candidate_count, len(picked.weighed)) == (policy.name, count, min(8, count))
    assert picked.weighed[0][0] == picked.replica_id


def test_ties_are_broken_by_the_request_the_same_way_everywhere() -> None:
    """Equal loads spread requests evenly, and one request goes to one replica whatever the order of the pool."""
    members = [candidate(f"r{i}") for i in range(8)]
    spread = Counter(name_of(choose(members, ask(request=f"q{i}"))) for i in range(4000))
    assert min(spread.values()) > 350
    for i in range(20):
        assert facts(choose(members, ask(request=f"q{i}"))) == facts(choose(members[::-1], ask(request=f"q{i}")))


def test_routers_that_see_a_little_different_loads_agree() -> None:
    """Loads that differ by less than a twentieth of the prompt are alike; beyond that the lower one wins."""
    for number in range(50):
        asked = ask(prefill=1000, session=f"s{number}")
        one = choose([candidate("a", prefill=10), candidate("b", prefill=30)], asked)
        other = choose([candidate("a", prefill=35), candidate("b", prefill=10)], asked)
        assert name_of(one) == name_of(other)
        assert name_of(choose([candidate("a", prefill=200), candidate("b", prefill=10)], asked)) == "b"


def test_few_sessions_move_when_a_replica_leaves() -> None:
    """Rendezvous hashing: only the sessions of the lost replica are placed elsewhere."""
    members = [candidate(f"r{i}") for i in range(5)]
    before = {f"s{i}": name_of(choose(members, ask(session=f"s{i}"))) for i in range(300)}
    after = {session: name_of(choose(members[:-1], ask(session=session))) for session in before}
    moved = [session for session in before if before[session] != after[session]]
    assert moved
    assert all(before[session] == "r4" for session in moved)


def test_round_robin_takes_turns_per_tenant() -> None:
    """Each tenant goes round by itself; a replica that left is passed over."""
    policy, pool = make_policy("round_robin", Random(3)), Pool([candidate(name) for name in "abc"])
    turns = [name_of(policy.pick(ask(tenant="t"), pool)) for _ in range(6)]
    assert turns[:3] == turns[3:]
    assert set(turns) == set("abc")
    assert {name_of(policy.pick(ask(tenant="u"), pool)) for _ in range(3)} == set("abc")


def test_two_choices_and_least_requests_look_at_own_requests_only() -> None:
    """The busiest of three is never taken by the first, and only the least busy by the second."""
    pool = Pool([candidate("a", in_flight=5), candidate("b", in_flight=2, prefill=10**6), candidate("c", in_flight=1)])
    two, least = make_policy("two_choices", Random(1)), make_policy("least_requests", Random(1))
    taken = Counter(name_of(two.pick(ask(), pool)) for _ in range(300))
    assert set(taken) == {"b", "c"}
    assert 150 < taken["c"] < 250
    assert {name_of(least.pick(ask(), pool)) for _ in range(30)} == {"c"}


def test_least_cost_counts_decode_like_prefill() -> None:
    """3,000 of decode are more than 1,000 of prefill there, and less for the platform's rule."""
    pool = Pool([candidate("a", prefill=1000), candidate("b", decode=3000)])
    assert name_of(make_policy("least_cost", Random(1)).pick(ask(), pool)) == "a"
    assert name_of(Cost().pick(ask(), pool)) == "b"


def test_prefix_match_follows_the_published_thresholds() -> None:
    """A prefix beyond .3 wins while loads are even; 65 requests more than the fewest and 1.5 times as many are not."""
    policy = make_policy("prefix_match", Random(1))
    index, made = holding(a=BLOCKS[:4], b=(), c=BLOCKS[:2])
    pool = Pool(made.values(), index)
    asked = ask(blocks=BLOCKS)
    made["a"].in_flight = 64
    picked = policy.pick(asked, pool)
    assert picked is not None
    assert (picked.replica_id, picked.sticky, picked.cached_tokens) == ("a", True, 400)
    made["a"].in_flight = 65
    assert name_of(policy.pick(asked, pool)) != "a"
    made["b"].in_flight = made["c"].in_flight = 60
    assert name_of(policy.pick(asked, pool)) == "a"  # 65 is not more than 1.5 times 60
    short_match = ask(blocks=(*BLOCKS[:3], *range(100, 107)))
    made["b"].in_flight = 0
    assert name_of(policy.pick(short_match, pool)) == "b"  # .3 is not more than .3


def test_every_policy_of_the_api_has_a_name_and_the_default_is_cost() -> None:
    """Each number stands for another policy; what is unset or unknown is the platform's choice."""
    numbers = [number for number in admin_pb2.RoutingPolicy.values() if number]
    names = [policy_name(number) for number in numbers]
    assert sorted(names) == sorted(POLICIES)
    assert all(make_policy(name, Random(1)).name == name for name in names)
    assert policy_name(admin_pb2.ROUTING_POLICY_UNSPECIFIED) == policy_name(999) == DEFAULT_POLICY
    assert make_policy("product", Random(1)).name == DEFAULT_POLICY
    assert [name for name in names if make_policy(name, Random(1)).waits_for_room] == ["late_binding"]
    with pytest.raises(KeyError):
        make_policy("best", Random(1))


def test_room_is_less_than_a_fifth_of_a_second_of_prefill_and_nothing_queued() -> None:
    """A fifth of a second of 100,000 mMU per minute is 333 mMU."""
    assert has_room(candidate("a", prefill=333))
    assert not has_room(candidate("a", prefill=334))
    assert has_room(candidate("a", prefill=600, capacity=200_000))
    assert not has_room(candidate("a", queued=1))


def test_the_pool_is_the_subset_or_everything_where_that_is_gone() -> None:
    """An assignment that names only replicas that are gone does not refuse traffic."""
    assert choose_pool(["b", "x"], {"a", "b"}) == ["b"]
    assert choose_pool(["x"], {"b", "a"}) == ["a", "b"]
    assert choose_pool([], {"a"}) == ["a"]


members_of = st.lists(
    st.tuples(
        st.integers(0, 2) | st.integers(0, 10**6),
        st.just(0) | st.integers(0, 10**6),
        st.integers(0, 40),
        st.sampled_from([0, 50_000, 100_000]),
        st.integers(0, 10),
    ),
    min_size=1,
    max_size=12,
)


@given(loads=members_of, prefill=st.integers(0, 10**5), most=st.integers(1, 8), cached=st.booleans())
def test_nothing_much_cheaper_was_left(
    loads: list[tuple[int, int, int, int, int]], prefill: int, most: int, cached: bool
) -> None:
    """By scores computed naively nobody beats the pick by more than a near tie; the best are remembered."""
    index, pool = PrefixIndex(), []
    for number, (pending, decode, requests, capacity, blocks) in enumerate(loads):
        name = f"r{number}"
        each = candidate(name, prefill=pending, decode=decode, requests=requests, capacity=capacity)
        if cached:
            each.cache_bit = index.join(name)
            index.add(name, BLOCKS[:blocks])
        pool.append(each)
    asked = ask(prefill=prefill, blocks=BLOCKS, most=most)
    picked = choose(pool, asked, index if cached else None)
    assert picked is not None

    held = [blocks if cached else 0 for *_, blocks in loads]
    load = [(each.pending_prefill_milli_mu + 0.3 * each.decode_milli_mu) * each.minutes_per_milli_mu for each in pool]
    scores = {}
    for each, own_blocks, own_load in zip(pool, held, load, strict=True):
        request = (prefill + 0.3 * 100) * each.minutes_per_milli_mu
        fair = own_load <= 1.25 * sum(load) / len(load) + request * (1 + 1e-9)
        counted = own_blocks if fair else min(held)
        own = prefill * (1000 - 100 * counted) // 1000
        scores[each.replica_id] = own_load + own * (1 + STALL_WEIGHT * each.requests) * each.minutes_per_milli_mu
    near = NEAR_TIE * prefill / 50_000
    assert scores[picked.replica_id] <= min(scores.values()) * (1 + 1e-9) + near
    assert picked.uncached_prefill_milli_mu == prefill * (10 - held[int(picked.replica_id[1:])]) // 10
    told = {weighed[0]: weighed[1] for weighed in picked.weighed}
    assert next(iter(told)) == picked.replica_id
    assert len(told) == min(most, len(pool))
    assert told == pytest.approx({name: scores[name] for name in told})
    bare = choose(pool, asked._replace(weighed_max=0), index if cached else None)
    assert facts(picked) | {"ranking": ()} == facts(bare)
