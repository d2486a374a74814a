"""Chat sessions and rates that change: what is sent, when, and that it depends on the seed alone."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from model_units.profiles import built_in_profiles
from simulation.arrivals import Arrival, Workloads, traffic
from simulation.scenario import ModelSpec, Settings, TenantSpec, parse_scenario
from simulation.sessions import CONVERSATION_TOKENS_MAX, ChatTerms, Conversation, Turn, sampled
from simulation.shape import Shape, shape_of
from tests.unit.simulation.fleets import by_name, chatter, simulation


def _spec(**changes: object) -> TenantSpec:
    return TenantSpec(id="acme", **{"workload": "chat", "input_tokens": 200, **changes})  # type: ignore[arg-type]


def _all_turns(conversation: Conversation) -> list[Turn]:
    return list(iter(conversation.next_turn, None))


def _arrivals(spec: TenantSpec, duration_s: float, seed: int = 1) -> list[Arrival]:
    profile = built_in_profiles().resolve("", "h100")
    drawn = traffic(spec, Workloads(None), Random(seed), profile, 400_000, duration_s, lambda _notes: None)
    return list(itertools.takewhile(lambda each: each.at_s < duration_s, drawn))


def _rate(arrivals: list[Arrival], begin_s: float, end_s: float) -> float:
    return sum(begin_s <= each.at_s < end_s for each in arrivals) / (end_s - begin_s)


def test_a_turn_sends_the_whole_conversation() -> None:
    """Each prompt is longer than the one before it with its answer, and its pieces begin with those of that one."""
    terms = ChatTerms.of(_spec(turns=20.0), 7)
    for seed in range(20):
        turns = _all_turns(Conversation(terms, seed))
        for before, after in itertools.pairwise(turns):
            assert after.input_tokens > before.input_tokens + before.output_tokens
            assert after.prefix[: len(before.prefix)] == before.prefix
            assert len(after.prefix) == after.input_tokens // 512
        assert turns[-1].input_tokens <= CONVERSATION_TOKENS_MAX


def test_sessions_share_their_tenants_system_prompt_and_nothing_else() -> None:
    """Pieces of the system prompt are those of every session of the tenant; no other piece is in two sessions."""
    terms = ChatTerms.of(_spec(turns=10.0, system_tokens=1_100), 7)
    known: Counter[int] = Counter()
    sessions = 50
    for seed in range(sessions):
        known.update(_all_turns(Conversation(terms, Random(seed).getrandbits(60)))[-1].prefix)
    assert [known[piece] for piece in terms.system] == [sessions] * 2
    assert {count for piece, count in known.items() if piece not in terms.system} == {1}
    assert not set(terms.system) & set(ChatTerms.of(_spec(system_tokens=1_100), 8).system)


def test_turns_and_thinking_are_as_long_as_was_asked() -> None:
    """Over many sessions the mean number of turns and the mean time to think meet the scenario."""
    terms = ChatTerms.of(_spec(turns=4.0, think_s=15.0, input_tokens=50), 1)
    sessions = [_all_turns(Conversation(terms, seed)) for seed in range(3_000)]
    turns = [turn for session in sessions for turn in session]
    assert len(turns) / len(sessions) == pytest.approx(4.0, rel=0.05)
    thoughts = [turn.think_s for session in sessions for turn in session[1:]]
    assert sum(thoughts) / len(thoughts) == pytest.approx(15.0, rel=0.05)
    assert sampled(terms.spec, 50) == sampled(terms.spec, 50)


def test_a_chat_is_under_way_when_traffic_begins() -> None:
    """From the first second on as many requests come as later, and the rate is what was asked."""
    spec = _spec(requests_per_s=3.0, load=0.0, turns=6.0, think_s=10.0)
    result = simulation(
        tenants=[_quoted(spec)], settings=Settings(duration_s=240.0), model=ModelSpec(id="m", replicas=4)
    )
    book = result.run().books["acme"]
    times = [at_s - 5.0 for at_s in book.ttft_at_s]
    early = sum(at_s < 80.0 for at_s in times) / 80.0
    late = sum(at_s >= 160.0 for at_s in times) / 80.0
    assert early == pytest.approx(3.0, rel=0.25)
    assert late == pytest.approx(3.0, rel=0.25)


def _quoted(spec: TenantSpec) -> TenantSpec:
    return replace(spec, reservation_mu_per_minute=300.0, burst_mu_per_minute=400.0)


def test_the_next_turn_waits_for_the_answer() -> None:
    """A session has one request at a time, and the next one comes after the end of the one before."""
    spec = _quoted(_spec(requests_per_s=1.0, turns=8.0, think_s=0.5, session="client"))
    sim = simulation(tenants=[spec], settings=Settings(duration_s=60.0), model=ModelSpec(id="m", replicas=2))
    open_now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for router in sim.routers:
        receive, end = router.receive, router._end

        def received(flight: object, *, receive: Callable[..., None] = receive) -> None:
            open_now[flight.session_id] += 1  # type: ignore[attr-defined]
            most[flight.session_id] = max(most[flight.session_id], open_now[flight.session_id])  # type: ignore[attr-defined]
            receive(flight)

        def ended(flight: object, *rest: object, end: Callable[..., None] = end, **more: object) -> None:
            open_now[flight.session_id] -= 1  # type: ignore[attr-defined]
            end(flight, *rest, **more)

        router.receive, router._end = received, ended  # type: ignore[method-assign]
    sim.run()
    assert len(most) > 10
    assert set(most.values()) == {1}


def test_a_chat_is_a_seed() -> None:
    """The same seed gives the same run of a chat; another seed gives another one."""

    def played(seed: int) -> list[float]:
        spec = _quoted(_spec(requests_per_s=2.0, noise=0.2))
        return list(
            simulation(tenants=[spec], settings=Settings(duration_s=30.0, seed=seed)).run().books["acme"].ttft_s
        )

    assert played(5) == played(5)
    assert played(5) != played(6)


@pytest.mark.parametrize("workload", ["synthetic", "excerpt"])
def test_a_surge_multiplies_the_rate_while_it_lasts(workload: str) -> None:
    """Between its beginning and its end three times as much comes as before and after."""
    spec = TenantSpec(
        id="acme", workload=workload, load=0.5, start_s=20.0, surge_at_s=220.0, surge_for_s=100.0, surge_factor=3.0
    )
    arrivals = _arrivals(spec, 520.0)
    before, during, after = (_rate(arrivals, *span) for span in ((20, 220), (220, 320), (320, 520)))
    assert during == pytest.approx(3.0 * before, rel=0.15)
    assert after == pytest.approx(before, rel=0.15)


def test_a_surge_of_a_chat_finds_its_sessions_under_way() -> None:
    """Requests come more often at once when a chat surges, not only when its new sessions have had their turns."""
    spec = _quoted(_spec(requests_per_s=1.5, think_s=20.0, turns=8.0, surge_at_s=100.0, surge_factor=3.0))
    sim = simulation(tenants=[spec], settings=Settings(duration_s=180.0), model=ModelSpec(id="m", replicas=8))
    times = sim.run().books["acme"].times
    received: dict[bool, list[int]] = defaultdict(list)
    for (kind, second), count in times.items():
        if kind == "received" and second < 140:
            received[second >= 100].append(count)
    assert sum(received[True]) / 40.0 == pytest.approx(3.0 * sum(received[False]) / 100.0, rel=0.3)


def test_a_rate_of_nothing_is_silence() -> None:
    """A factor of zero stops traffic, for good where it lasts."""
    spec = chatter(surge_at_s=10.0, surge_factor=0.0)
    assert 9.0 < _arrivals(spec, 100.0)[-1].at_s < 10.0
    pause = chatter(surge_at_s=10.0, surge_for_s=50.0, surge_factor=0.0)
    arrivals = _arrivals(pause, 100.0)
    assert not [each for each in arrivals if 10.0 <= each.at_s < 60.0]
    assert _rate(arrivals, 60.0, 100.0) > 1.0


def test_noise_wanders_within_its_bounds() -> None:
    """Twenty per cent of noise changes the rate between four and six fifths, and leaves the mean as it was."""
    shape = shape_of(chatter(noise=0.2), lambda: Random(1), 6_000.0)
    assert shape is not None
    factors = [factor for _, factor in shape.pieces]
    assert 0.8 <= min(factors) < 0.84
    assert 1.16 < max(factors) <= 1.2
    assert shape.work_s(6_000.0) == pytest.approx(6_000.0, rel=0.03)
    assert shape_of(chatter(), lambda: Random(1), 6_000.0) is None


def test_shaped_work_is_what_arrives() -> None:
    """Evenly spaced arrivals, moved by a shape, are as many up to any moment as the shape's work says."""
    shape = Shape(((0.0, 0.5), (10.0, 0.0), (20.0, 4.0), (30.0, 1.0)))
    even = (Arrival(0.25 * at, 1, 1) for at in range(400))
    times = [each.at_s for each in shape.apply(even)]
    assert times == sorted(times)
    for until_s in (3.0, 10.0, 15.0, 24.0, 30.0, 47.0):
        assert sum(at_s < until_s for at_s in times) == pytest.approx(4 * shape.work_s(until_s), abs=1.01)


def test_tenants_of_one_entry_share_it_by_zipfs_law() -> None:
    """With an exponent the second tenant has half of the first one's part, and together they have what was written."""
    text = '[[model]]\nid = "m"\n[[tenant]]\nid = "t"\ncount = 4\nload = 0.5\nreservation_mu_per_minute = 100\n'
    alike = parse_scenario(text).tenants
    shared = parse_scenario(text + "zipf = 1.0\n").tenants
    assert {tenant.load for tenant in alike} == {0.5}
    assert sum(tenant.load for tenant in shared) == pytest.approx(0.5)
    assert sum(tenant.reservation_mu_per_minute for tenant in shared) == pytest.approx(100.0)
    assert [shared[0].load / tenant.load for tenant in shared] == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_a_chat_finds_its_prefixes() -> None:
    """On one replica nearly all that a session said before is in the cache."""
    spec = _quoted(_spec(requests_per_s=1.0, turns=10.0, think_s=2.0, input_tokens=600, system_tokens=512))
    result = simulation(tenants=[spec], settings=Settings(duration_s=90.0), model=ModelSpec(id="m", replicas=1)).run()
    assert by_name(result)["total"].cached_share > 0.7
