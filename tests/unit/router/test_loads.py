"""What a router knows of a replica's load, between its reports and after bad ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.router.core.candidate import STALL_WEIGHT, UNSEEN_WEIGHT
from data_plane.router.core.fleet import Fleet, Link
from data_plane.router.core.loads import (
    ABSURD_MINUTES,
    DISPATCH_UNSEEN_NS,
    REQUESTS_MAX,
    Dispatch,
    ReplicaLoad,
    Report,
)
from data_plane.router.core.policies.cost import Cost
from data_plane.router.core.policies.policy import Ask
from data_plane.router.core.prefix_index import BLOCK_TOKENS_MIN, BLOCKS_DEFAULT, CacheChange, PrefixIndex
from fairlead.engine.v1 import engine_pb2

READY = engine_pb2.REPLICA_STATE_READY
SECOND = 1_000_000_000
LATER = DISPATCH_UNSEEN_NS


def load_of(capacity: int = 60_000) -> ReplicaLoad:
    """A replica that does 1,000 mMU a second."""
    load = ReplicaLoad("r")
    load.serve(capacity)
    return load


def seen(load: ReplicaLoad) -> tuple[int, int]:
    return load.pending_prefill_milli_mu, load.decode_milli_mu


def test_a_report_includes_exactly_the_dispatches_it_has_seen() -> None:
    """However long ago they were sent: the wire may be slow, and the report older than it looks."""
    load = load_of()
    first = load.dispatch(50, 30, 0)
    load.dispatch(70, 40, 0)
    assert (first.number, load.in_flight, load.requests) == (1, 2, 2)
    load.report(Report(1, 50, 30, requests=1, dispatches_seen=1), 3 * SECOND)
    assert (*seen(load), load.requests) == (120, 70, 2)
    load.report(Report(2, 110, 60, requests=2, dispatches_seen=2), 3 * SECOND)
    assert (*seen(load), load.requests) == (110, 60, 2)


def test_dispatches_that_no_report_has_seen_weigh_more_in_the_score_alone() -> None:
    """Others sent there as well, unseen: the score guesses so until a report comes, what is known stays exact."""
    load = load_of()
    load.dispatch(50, 0, 0)
    assert (load.pending_prefill_milli_mu, load.requests) == (50, 1)
    assert load.load_minutes == pytest.approx((1 + UNSEEN_WEIGHT) * 50 / 60_000)
    assert load.own_minutes_per_milli_mu == pytest.approx((1 + STALL_WEIGHT * (1 + UNSEEN_WEIGHT)) / 60_000)
    load.report(Report(1, 50, 0, requests=1, dispatches_seen=1), 0)
    assert load.load_minutes == pytest.approx(50 / 60_000)
    assert load.own_minutes_per_milli_mu == pytest.approx((1 + STALL_WEIGHT) / 60_000)


def test_what_began_or_ended_since_an_old_report_is_taken_off_it() -> None:
    """Its prompt at the first token, its output at the end: all of it, or what was left of it at the report."""
    load = load_of(capacity=1)  # so slow that nothing is worked off meanwhile
    own = load.dispatch(30, 20, 0)
    load.report(Report(1, 50, 40, dispatches_seen=1), SECOND)
    load.started(own, SECOND + LATER)
    load.started(own, SECOND + LATER)
    assert seen(load) == (20, 40)
    load.ended(own, 2 * SECOND)
    load.ended(own, 2 * SECOND)
    assert (*seen(load), load.in_flight) == (20, 20, 0)

    own = load.dispatch(0, 40, 2 * SECOND)
    load.started(own, 2 * SECOND)
    load.report(Report(2, 0, 30, dispatches_seen=2), 5 * SECOND)
    load.ended(own, 6 * SECOND)  # three quarters of its time were over at the report
    assert load.decode_milli_mu == 20


def test_a_report_that_comes_with_the_first_token_has_it_already() -> None:
    """The same message says both: its prefill is not taken off twice."""
    load = load_of()
    own = load.dispatch(30, 20, 0)
    load.report(Report(1, 100, 20, dispatches_seen=1), SECOND)
    load.started(own, SECOND)
    assert seen(load) == (100, 20)
    load.report(Report(2, 100, 10, dispatches_seen=1), 2 * SECOND)
    load.ended(own, 2 * SECOND)
    assert seen(load) == (100, 10)


def test_stale_reports_age_but_own_requests_that_did_not_begin_stay() -> None:
    """What waits is worked off at the capacity; of own prompts only the largest may be half done."""
    load = load_of()
    load.report(Report(1, 1_300, 600, dispatches_seen=0), 0)
    load.age(SECOND)
    assert seen(load) == (300, 300)
    load.age(10 * SECOND)
    assert seen(load) == (0, 0)
    for prefill in (200, 300, 100):
        load.dispatch(prefill, 10, 10 * SECOND)
    assert seen(load) == (600, 30)
    load.age(11 * SECOND)
    assert seen(load) == (300, 30)


def test_time_that_goes_backwards_changes_nothing() -> None:
    """Nothing is worked off before the report, nothing grows, and later time counts from the report again."""
    load = load_of()
    load.report(Report(1, 1_000, 600), 10 * SECOND)
    load.age(SECOND)
    assert seen(load) == (1_000, 600)
    own = load.dispatch(100, 10, SECOND)
    assert seen(load) == (1_100, 610)
    load.started(own, 0)
    load.ended(own, 0)
    assert seen(load) == (1_000, 600)
    assert load.report(Report(2, 500, 300), 0)
    load.age(SECOND // 10)
    assert seen(load) == (400, 270)


@pytest.mark.parametrize("nonsense", [-1, -(2**63), 2**63 - 1, ABSURD_MINUTES * 60_000])
def test_numbers_that_cannot_be_true_count_as_not_said(nonsense: int) -> None:
    """Only what this router sent there is known then; the next sane report counts again."""
    load = load_of()
    load.dispatch(100, 50, 0)
    load.report(Report(1, nonsense, nonsense, nonsense, nonsense % 7, nonsense, nonsense, 1), SECOND)
    assert (*seen(load), load.queued_decode_milli_mu) == (100, 50, 0)
    assert load.kv_used_tokens >= 0
    load.report(Report(2, 70, 20, 10, dispatches_seen=1), SECOND)
    assert (*seen(load), load.queued_decode_milli_mu) == (70, 20, 10)


def test_a_count_of_dispatches_that_were_never_sent_is_not_believed() -> None:
    """An agent that claims to have seen more than there were is taken for one that does not count."""
    load = load_of()
    load.dispatch(100, 50, 0)
    load.report(Report(1, 0, 0, dispatches_seen=99), DISPATCH_UNSEEN_NS - 1)
    assert seen(load) == (100, 50)


def test_a_replica_that_lost_count_is_believed_again() -> None:
    """Older numbers are ignored, until nothing but older ones has come for as long as a silence may last."""
    load = load_of()
    assert load.report(Report(2**64 - 1, 10, 0), 0)
    assert not load.report(Report(1, 500, 0), 4 * SECOND)
    assert load.report(Report(1, 500, 0), 5 * SECOND)
    assert load.pending_prefill_milli_mu == 500


@pytest.mark.parametrize("claims", [0, 2**62])
def test_a_liar_is_neither_flooded_nor_left_alone(claims: int) -> None:
    """Of two replicas one always claims to be idle, or overwhelmed: both get requests, none all of a burst."""
    fleet, policy = Fleet(), Cost()
    for name in ("honest", "liar"):
        fleet.enlist(engine_pb2.Replica(replica_id=name, model_id="m", state=READY), 0)
        fleet.link(name, Link.UP, 0)
    sent = dict.fromkeys(("honest", "liar"), 0)
    for number in range(200):
        now_ns = number * SECOND // 100
        for name, pending in (("honest", 50 * sent["honest"]), ("liar", claims)):
            report = Report(number + 1, pending, 0, requests=0, dispatches_seen=sent[name])
            fleet.report(name, report, READY, now_ns)
        pool = fleet.candidates("m", (), now_ns)
        picked = policy.pick(Ask(50, 50, 100, request_id=str(number)), pool)
        assert picked is not None
        member = fleet.get(picked.replica_id)
        assert member is not None
        member.load.dispatch(50, 50, now_ns)
        sent[picked.replica_id] += 1
    assert min(sent.values()) > 60


def test_a_late_report_still_tells_what_changed_in_the_cache() -> None:
    """The load of an overtaken report is old; its change of the cache is said only once and counts."""
    load, index = load_of(), PrefixIndex()
    load.prefixes, load.cache_bit = index, index.join("r")
    load.report(Report(2, 0, 0, cache=CacheChange(True, (1,), ())), 0)
    assert not load.report(Report(1, 900, 0, cache=CacheChange(False, (2,), ())), 0)
    assert index.match((1, 2), load.cache_bit) == [(load.cache_bit, 2)]


def test_the_first_report_tells_the_size_of_the_cache_before_its_contents() -> None:
    """A large cache is known whole from the report that says both."""
    load, index = load_of(), PrefixIndex()
    load.prefixes, load.cache_bit = index, index.join("r")
    blocks = 2 * BLOCKS_DEFAULT
    change = CacheChange(True, range(1, blocks + 1), ())
    load.report(Report(1, 0, 0, kv_capacity_tokens=blocks * BLOCK_TOKENS_MIN, cache=change), 0)
    assert len(index) == blocks


@pytest.mark.parametrize("claims", [REQUESTS_MAX + 1, 2**62, -5])
def test_an_absurd_number_of_requests_is_not_believed(claims: int) -> None:
    """Of a replica that claims so many, only what this router sent there counts, so it is not left alone for good."""
    load = load_of()
    load.dispatch(100, 100, SECOND)
    load.report(Report(1, 0, 0, requests=claims, dispatches_seen=1), SECOND)
    assert load.requests == 1
    load.dispatch(100, 100, SECOND)
    assert load.requests == 2
    load.report(Report(2, 0, 0, requests=REQUESTS_MAX, dispatches_seen=2), SECOND)
    assert load.requests == REQUESTS_MAX


def test_own_prompts_are_in_the_cache_at_once_and_leave_it_if_they_never_began() -> None:
    """The next turn finds them before any report; a request that failed before its first token left nothing."""
    load, index = load_of(), PrefixIndex()
    load.prefixes, load.cache_bit = index, index.join("r")
    begun, failed = load.dispatch(1, 1, 0, (1, 2)), load.dispatch(1, 1, 0, (1, 2, 3, 4))
    assert index.match((1, 2, 3, 4), load.cache_bit) == [(load.cache_bit, 4)]
    load.started(begun, 0)
    load.ended(failed, 0)
    load.ended(begun, 0)
    assert index.match((1, 2, 3, 4), load.cache_bit) == [(load.cache_bit, 2)]


def test_the_fleet_keeps_the_caches_of_replicas_that_have_one() -> None:
    """By their record, also when that changes; who is forgotten leaves the index, and a model without has none."""
    fleet = Fleet()
    record = engine_pb2.Replica(replica_id="r", model_id="m", state=READY, prefix_cache=True)
    fleet.enlist(record, 0)
    index = fleet.prefixes("m")
    assert index is not None
    fleet.report("r", Report(1, 0, 0, kv_capacity_tokens=1_000, cache=CacheChange(True, (1, 2), ())), READY, 0)
    picked = Cost().pick(Ask(100, 0, 100, (1, 2), 25.0), fleet.candidates("m", (), 0))
    assert picked is not None
    assert (picked.uncached_prefill_milli_mu, picked.cached_tokens) == (50, 50)
    fleet.enlist(engine_pb2.Replica(replica_id="r", model_id="m", state=READY), 0)
    assert (fleet.prefixes("m"), len(index)) == (None, 0)
    fleet.enlist(record, 0)
    fleet.enlist(engine_pb2.Replica(replica_id="r", model_id="other", state=READY), 0)
    assert fleet.candidates("m", (), 0).members == []
    assert [each.replica_id for each in fleet.candidates("other", (), 0).members] == ["r"]
    assert fleet.prefixes("nothing") is None


def test_a_report_is_read_whole() -> None:
    """Every field that routing uses comes from the message."""
    message = engine_pb2.LoadReport(
        sequence=3,
        pending_prefill_milli_mu=1,
        decode_milli_mu=2,
        queued_decode_milli_mu=4,
        queued_requests=5,
        running_requests=6,
        kv_used_tokens=7,
        kv_capacity_tokens=8,
        dispatches_seen=9,
    )
    assert Report.of(message) == Report(3, 1, 2, 4, 11, 7, 8, 9, None)
    message.cache.added.append(1)
    read = Report.of(message).cache
    assert read is not None
    assert (read.whole, list(read.added), list(read.dropped)) == (False, [1], [])


steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "arrive", "begin", "end", "measure", "deliver", "lose"]),
        st.integers(0, 5),
        st.integers(1, 50),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(history=steps)
def test_after_any_loss_and_reorder_the_newest_report_makes_the_load_exact(
    history: list[tuple[str, int, int]],
) -> None:
    """Whatever was delayed or lost, a fresh report and the dispatches it has not seen are all that waits and runs."""
    load, sequence, now_ns = load_of(), 0, SECOND
    sent: list[Dispatch] = []
    arrived: list[Dispatch] = []
    live: set[int] = set()
    wire: list[Report] = []

    def measure() -> Report:
        nonlocal sequence
        sequence += 1
        here = [each for each in arrived if each.number in live]
        return Report(
            sequence,
            sum(each.prefill_milli_mu for each in here if each.started_ns is None),
            sum(each.decode_milli_mu for each in here),
            requests=len(here),
            dispatches_seen=max((each.number for each in arrived), default=0),
        )

    for what, which, size in history:
        now_ns += LATER
        running = [each for each in arrived if each.number in live]
        match what:
            case "send":
                dispatch = load.dispatch(size, 2 * size, now_ns)
                sent.append(dispatch)
                live.add(dispatch.number)
            case "arrive" if len(arrived) < len(sent):
                arrived.append(sent[len(arrived)])
            case "begin" if running:
                load.started(running[which % len(running)], now_ns)
            case "end" if running:
                gone = running[which % len(running)]
                load.ended(gone, now_ns)
                live.discard(gone.number)
            case "measure":
                wire.append(measure())
            case "deliver" if wire:
                load.report(wire.pop(which % len(wire)), now_ns)
            case "lose" if wire:
                wire.pop(which % len(wire))
        assert load.in_flight == len(live)
        assert load.pending_prefill_milli_mu >= 0
        assert load.decode_milli_mu >= 0
    if arrived:  # an agent to which nothing has come cannot be told from one that does not count
        load.report(measure(), now_ns)
        waiting = sum(each.prefill_milli_mu for each in sent if each.number in live and each.started_ns is None)
        assert seen(load) == (waiting, sum(each.decode_milli_mu for each in sent if each.number in live))
        assert load.requests == len(live)
    for each in sent:
        load.ended(each, now_ns)
    live.clear()
    load.report(measure(), now_ns)
    assert (*seen(load), load.in_flight) == (0, 0, 0)
