"""Poison requests, hopeless deadlines, and how prompts are named."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.router.core.candidate import Health
from data_plane.router.core.deadline import DOUBT, Sent, is_hopeless, soonest_first_token_s
from data_plane.router.core.loads import ReplicaLoad, Report
from data_plane.router.core.policies.policy import Ask
from data_plane.router.core.pool import Pool
from data_plane.router.core.prefix_index import PrefixIndex
from data_plane.router.core.quarantine import QUARANTINE_S, QUARANTINE_S_MAX, SUSPECTS_MAX, Quarantine, fingerprint
from fairlead.inference.v1 import inference_pb2
from model_units.prefix import PREFIX_BLOCK_BYTES, PREFIX_BLOCKS_MAX, prefix_blocks, prompt_chunks

SECOND = 1_000_000_000


def test_a_prompt_that_was_lost_with_two_replicas_is_refused() -> None:
    """One loss may be chance, and the same replica twice is one; the second one is not, until the time is over."""
    quarantine = Quarantine()
    assert not quarantine
    assert not quarantine.lost(b"p", "r1", 0)
    assert not quarantine.lost(b"p", "r1", SECOND)
    assert quarantine
    assert quarantine.refused_s(b"p", SECOND) is None
    assert quarantine.lost(b"p", "r2", 2 * SECOND)
    assert quarantine.refused_s(b"p", 2 * SECOND) == QUARANTINE_S
    assert quarantine.refused_s(b"other", 2 * SECOND) is None
    assert quarantine.refused_s(b"p", int((2 + QUARANTINE_S) * SECOND)) is None
    quarantine.answered(b"p")
    assert not quarantine


def test_a_refusal_ends_for_one_try_and_doubles_when_that_costs_another_replica() -> None:
    """A false alarm costs a minute; poison takes one replica per refusal, and those grow to ten minutes."""
    quarantine, now_ns = Quarantine(), 0
    quarantine.lost(b"p", "r1", now_ns)
    waits_s = []
    for number in range(2, 9):
        quarantine.lost(b"p", f"r{number}", now_ns)
        left_s = quarantine.refused_s(b"p", now_ns)
        assert left_s is not None
        waits_s.append(left_s)
        now_ns += int(left_s * SECOND)
        assert quarantine.refused_s(b"p", now_ns) is None
        assert quarantine.refused_s(b"p", now_ns + 1) is None
        quarantine.try_once(b"p", now_ns)
        assert quarantine.refused_s(b"p", now_ns + 1) is not None
    assert waits_s == [60, 120, 240, 480, 600, 600, 600]
    quarantine.answered(b"p")
    assert quarantine.refused_s(b"p", now_ns + 1) is None


def test_an_old_suspicion_is_forgotten_and_an_answer_clears() -> None:
    """Two losses more than ten minutes apart are two chances; who was answered kills nothing."""
    quarantine = Quarantine()
    quarantine.lost(b"p", "r1", 0)
    assert not quarantine.lost(b"p", "r2", int(QUARANTINE_S_MAX * SECOND) + 1)
    quarantine.answered(b"p")
    quarantine.answered(b"p")
    assert not quarantine.lost(b"p", "r3", int(QUARANTINE_S_MAX * SECOND) + 2)


def test_nothing_is_left_of_what_is_over() -> None:
    """Once the last suspicion ends no prompt needs a fingerprint any more, and crashes are forgotten with it."""
    quarantine, end_ns = Quarantine(), int(QUARANTINE_S_MAX * SECOND)
    for number in range(100):
        quarantine.lost(str(number).encode(), "r1", number)
    quarantine.tried_again("r1", "r2")
    assert quarantine.refused_s(b"other", end_ns + 50) is None
    assert quarantine.lost(b"99", "r3", end_ns + 98)
    assert quarantine.elsewhere(["r1"], ["r2", "r4"]) == set()
    assert quarantine
    assert quarantine.refused_s(b"other", 3 * end_ns) is None
    assert not quarantine


def test_a_try_that_is_late_is_guarded_as_long_as_any() -> None:
    """A prompt that is tried again just before it would be forgotten is refused meanwhile all the same."""
    quarantine = Quarantine()
    for replica_id in ("r1", "r2"):
        quarantine.lost(b"p", replica_id, 0)
    late_ns = int((QUARANTINE_S_MAX + QUARANTINE_S - 1) * SECOND)
    assert quarantine.refused_s(b"p", late_ns) is None
    quarantine.try_once(b"p", late_ns)
    assert quarantine.refused_s(b"p", late_ns + 2 * SECOND) == QUARANTINE_S - 2


def test_bystanders_of_one_crash_are_told_from_the_poison() -> None:
    """Three requests of one crash are tried on three replicas; with none left they share again."""
    quarantine, left = Quarantine(), ["r2", "r3", "r4"]
    tried = []
    for name in (b"a", b"poison", b"c"):
        quarantine.lost(name, "r1", 0)
        avoid = quarantine.elsewhere(["r1"], left)
        replica_id = next(each for each in left if each not in avoid)
        quarantine.tried_again("r1", replica_id)
        tried.append(replica_id)
    assert tried == left
    assert quarantine.lost(b"poison", "r3", SECOND)
    assert quarantine.refused_s(b"a", SECOND) is None
    assert quarantine.elsewhere(["r1"], left) == set()
    assert quarantine.elsewhere(["r9"], left) == set()


def test_suspects_are_bounded() -> None:
    """The one that was suspected longest ago is forgotten first."""
    quarantine = Quarantine()
    for number in range(SUSPECTS_MAX + 1):
        quarantine.lost(str(number).encode(), "r1", number)
    assert not quarantine.lost(b"0", "r2", SUSPECTS_MAX)
    assert quarantine.lost(str(SUSPECTS_MAX).encode(), "r2", SUSPECTS_MAX)


def test_a_fingerprint_is_one_tenants() -> None:
    """The same prompt of another tenant or to another model is another one."""
    prints = {fingerprint(tenant, model, [b"pro", b"mpt"]) for tenant in "tu" for model in "mn"}
    assert len(prints) == 4
    assert fingerprint("t", "m", [b"prompt"]) in prints


def loads(*names: str) -> list[ReplicaLoad]:
    """Replicas of 60,000 mMU per minute: a thousand a second."""
    made = []
    for name in names:
        load = ReplicaLoad(name)
        load.health = Health.READY
        load.serve(60_000)
        made.append(load)
    return made


def test_a_request_is_hopeless_only_when_the_best_replica_misses_by_far() -> None:
    """The bound is that of the replica that could answer first, its cache counted; half as much again must miss."""
    index, sent = PrefixIndex(), Sent()
    members = loads("a", "b")
    for each in members:
        each.cache_bit = index.join(each.replica_id)
    index.add("b", (1, 2, 3, 4, 5))
    asked = Ask(6_000, 0, 6_000, tuple(range(1, 11)), 600.0)
    assert soonest_first_token_s(asked, Pool(members, index), sent, 1) == pytest.approx(3.0)
    assert soonest_first_token_s(asked._replace(excluded={"b"}), Pool(members, index), sent, 1) == pytest.approx(6.0)
    assert soonest_first_token_s(asked, Pool(()), sent, 1) is None
    assert is_hopeless(5.5, 5.5 / DOUBT - 0.01)
    assert not is_hopeless(5.5, 5.5 / DOUBT + 0.01)
    assert not is_hopeless(5.5, math.inf)
    assert is_hopeless(0.1, -3.0)
    assert not is_hopeless(0.0, 0.0)


def test_only_what_is_certainly_before_a_request_counts_against_its_deadline() -> None:
    """Another tenant's flood, a lower priority, a larger prompt may be overtaken; what began is gone."""
    (load,), sent = loads("r"), Sent()
    load.report(Report(1, 30_000, 30_000), 0)
    before = [load.dispatch(prefill, 0, 0) for prefill in (700, 1_000, 1_001, 5_000, 400, 200)]
    for dispatch, (tenant, rank) in zip(
        before, [("t", 1), ("t", 1), ("t", 1), ("t", 0), ("t", 2), ("u", 1)], strict=True
    ):
        sent.add(dispatch, tenant, rank)

    def soonest(rank: int = 1, tenant: str = "t") -> float:
        found = soonest_first_token_s(Ask(1_000, 0, 1_000, tenant_id=tenant), Pool([load]), sent, rank)
        assert found is not None
        return found

    assert soonest() == pytest.approx(0.7 + 1.0 + 5.0 + 1.0)
    assert soonest(2) == pytest.approx(0.7 + 1.0 + 1.001 + 5.0 + 0.4 + 1.0)
    assert soonest(tenant="u") == pytest.approx(0.2 + 1.0)
    assert soonest(tenant="nobody") == pytest.approx(1.0)
    sent.remove(before[3])
    sent.remove(before[3])
    assert soonest() == pytest.approx(0.7 + 1.0 + 1.0)
    for dispatch in before:
        sent.remove(dispatch)
    assert soonest() == pytest.approx(1.0)
    assert len(sent) == 0


@given(
    common=st.binary(max_size=3 * PREFIX_BLOCK_BYTES),
    ends=st.tuples(st.binary(max_size=2000), st.binary(max_size=2000)),
    cut=st.integers(0, 5000),
)
def test_prompts_share_the_names_of_the_whole_blocks_they_share(
    common: bytes, ends: tuple[bytes, bytes], cut: int
) -> None:
    """As many names agree from the front as whole blocks do, however the prompt was cut into chunks."""
    one, other = common + ends[0], common + ends[1]
    named, others = prefix_blocks([one[:cut], one[cut:]]), prefix_blocks([other])
    assert named == prefix_blocks([one])
    assert len(named) == len(one) // PREFIX_BLOCK_BYTES
    size, shared = PREFIX_BLOCK_BYTES, 0
    while shared < min(len(named), len(others)) and one[: (shared + 1) * size] == other[: (shared + 1) * size]:
        shared += 1
    assert named[:shared] == others[:shared]
    assert not set(named[shared:]) & set(others[shared:])


def test_names_are_the_same_in_every_version() -> None:
    """Routers and agents of different builds mean the same prefix."""
    assert prefix_blocks([bytes(2 * PREFIX_BLOCK_BYTES)]) == (0x5F70BF18A0860070, 0xE5A00AA9991AC8A5)
    assert len(prefix_blocks([bytes(2_000_000)])) == PREFIX_BLOCKS_MAX
    assert prefix_blocks([]) == ()


def test_a_conversation_that_goes_on_keeps_its_prefix() -> None:
    """The next turn's prompt begins with the last one's; who spoke is part of it."""
    turns = [("user", "a" * 3000), ("assistant", "b" * 3000), ("user", "c")]
    short, long = inference_pb2.GenerateRequest(), inference_pb2.GenerateRequest()
    for at, (role, content) in enumerate(turns):
        long.chat.messages.add(role=role, content=content)
        if at < 2:
            short.chat.messages.add(role=role, content=content)
    first = prefix_blocks(prompt_chunks(short))
    assert len(first) == 5
    assert prefix_blocks(prompt_chunks(long))[:5] == first
    short.chat.messages[0].role = "system"
    assert prefix_blocks(prompt_chunks(short))[0] != first[0]
    assert b"".join(prompt_chunks(inference_pb2.GenerateRequest(prompt="día"))) == "día".encode()
    assert b"".join(prompt_chunks(inference_pb2.GenerateRequest())) == b""
