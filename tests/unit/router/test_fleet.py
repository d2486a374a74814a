"""What the router believes of replicas: records, load streams and its own dispatches."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.router.core.candidate import Health
from data_plane.router.core.fleet import Fleet, Link, Member, Room
from data_plane.router.core.loads import DISPATCH_UNSEEN_NS, Dispatch, ReplicaLoad, Report
from fairlead.engine.v1 import engine_pb2

READY = engine_pb2.REPLICA_STATE_READY
DRAINING = engine_pb2.REPLICA_STATE_DRAINING
UNHEALTHY = engine_pb2.REPLICA_STATE_UNHEALTHY
SECOND = 1_000_000_000


def record(name: str = "r", state: engine_pb2.ReplicaState.ValueType = READY) -> engine_pb2.Replica:
    return engine_pb2.Replica(replica_id=name, model_id="m", address="h:1", state=state)


def fleet_with(state: engine_pb2.ReplicaState.ValueType = READY) -> tuple[Fleet, Member]:
    fleet = Fleet()
    fleet.enlist(record(state=state), 0)
    member = fleet.get("r")
    assert member is not None
    return fleet, member


def hear(fleet: Fleet, sequence: int, now_ns: int, state: engine_pb2.ReplicaState.ValueType = READY) -> None:
    fleet.report("r", Report(sequence, 0, 0), state, now_ns)
    fleet.link("r", Link.UP, now_ns)


def test_a_new_replica_is_believed_briefly_before_its_first_report() -> None:
    """READY by its record for a few seconds, then doubtful until it speaks."""
    fleet, member = fleet_with()
    assert fleet.health(member, SECOND) is Health.READY
    assert fleet.health(member, 10 * SECOND) is Health.DOUBTFUL
    hear(fleet, 1, 10 * SECOND)
    assert fleet.health(member, 10 * SECOND) is Health.READY


@pytest.mark.parametrize(
    ("state", "health"),
    [
        (READY, Health.READY),
        (UNHEALTHY, Health.DOUBTFUL),
        (DRAINING, Health.CLOSED),
        (engine_pb2.REPLICA_STATE_STARTING, Health.CLOSED),
        (engine_pb2.REPLICA_STATE_CALIBRATING, Health.CLOSED),
    ],
)
def test_the_agents_word_counts_over_the_record(state: engine_pb2.ReplicaState.ValueType, health: Health) -> None:
    """The load stream knows a state before the store does."""
    fleet, member = fleet_with(READY)
    hear(fleet, 1, 0, state)
    assert fleet.health(member, 0) is health


def test_silence_makes_doubtful_and_refusal_closes() -> None:
    """Five seconds without a report, or a broken stream: doubtful. Nothing listens there: closed."""
    fleet, member = fleet_with()
    hear(fleet, 1, 0)
    assert fleet.health(member, 4 * SECOND) is Health.READY
    assert fleet.health(member, 6 * SECOND) is Health.DOUBTFUL
    fleet.link("r", Link.SILENT, 0)
    assert fleet.health(member, 0) is Health.DOUBTFUL
    fleet.link("r", Link.REFUSED, 0)
    assert fleet.health(member, 0) is Health.CLOSED


def test_a_full_replica_is_left_alone_then_probed_then_open() -> None:
    """Full until it said: no room. Then a probe; room again once it has served one that was sent after that."""
    fleet, _ = fleet_with()
    hear(fleet, 1, 0)
    assert fleet.room("m", (), 0) is Room.OPEN
    fleet.filled("r", SECOND)
    fleet.filled("r", SECOND // 2)
    assert (fleet.room("m", (), SECOND - 1), fleet.full("m", (), SECOND - 1)) == (Room.NONE, {"r"})
    assert (fleet.room("m", (), SECOND), fleet.full("m", (), SECOND)) == (Room.PROBE, set())
    fleet.served("r", SECOND - 1)  # let in before it was full
    assert fleet.room("m", (), SECOND) is Room.PROBE
    fleet.served("r", SECOND)
    assert fleet.room("m", (), SECOND) is Room.OPEN
    fleet.filled("r", 2 * SECOND)
    fleet.enlist(record("other"), SECOND)
    assert fleet.room("m", (), SECOND) is Room.OPEN
    assert fleet.room("m", ("r",), SECOND) is Room.NONE
    assert fleet.room("nothing", (), SECOND) is Room.NONE


def test_a_failed_request_casts_doubt_until_the_next_report() -> None:
    """One failure takes a replica out for at most a report interval."""
    fleet, member = fleet_with()
    hear(fleet, 1, 0)
    fleet.failed("r", SECOND)
    assert fleet.health(member, SECOND) is Health.DOUBTFUL
    hear(fleet, 2, 2 * SECOND)
    assert fleet.health(member, 2 * SECOND) is Health.READY


def test_a_vanished_record_is_kept_while_its_stream_is_up() -> None:
    """The store lost the record, the agent still reports: used on; once it falls silent it is forgotten."""
    fleet, member = fleet_with()
    hear(fleet, 1, 0)
    fleet.delist("r", 0)
    assert fleet.health(member, SECOND) is Health.READY
    assert [each.replica_id for each in fleet.candidates("m", (), SECOND).members] == ["r"]
    fleet.sweep(SECOND)
    assert fleet.get("r") is member
    fleet.sweep(10 * SECOND)
    assert fleet.get("r") is None
    assert fleet.candidates("m", (), SECOND).members == []


@pytest.mark.parametrize("link", [Link.UNTRIED, Link.SILENT, Link.REFUSED])
def test_a_vanished_record_without_a_stream_is_forgotten_at_once(link: Link) -> None:
    """Nothing speaks for it any more."""
    fleet, _ = fleet_with()
    if link is not Link.UNTRIED:
        hear(fleet, 1, 0)
        fleet.link("r", link, 0)
    fleet.delist("r", 0)
    assert fleet.get("r") is None


def test_a_vanished_record_whose_stream_breaks_is_forgotten() -> None:
    """The other order: first the record, then the stream."""
    fleet, _ = fleet_with()
    hear(fleet, 1, 0)
    fleet.delist("r", 0)
    fleet.link("r", Link.REFUSED, 0)
    assert fleet.get("r") is None


def test_reports_of_an_older_number_are_ignored() -> None:
    """A report that was overtaken changes nothing, not even the time it was heard."""
    load = ReplicaLoad("r")
    assert load.report(Report(5, 100, 10), 0)
    assert not load.report(Report(4, 900, 90), 0)
    assert (load.pending_prefill_milli_mu, load.decode_milli_mu) == (100, 10)


def test_own_dispatches_count_at_once_and_until_a_report_has_seen_them() -> None:
    """They are added to the last report, and dropped by one that is late enough to include them."""
    load = ReplicaLoad("r")
    load.report(Report(1, 100, 10), 0)
    load.dispatch(50, 30, 1_000)
    assert (load.pending_prefill_milli_mu, load.decode_milli_mu) == (150, 40)
    load.report(Report(2, 120, 15), 1_000 + DISPATCH_UNSEEN_NS - 1)
    assert (load.pending_prefill_milli_mu, load.decode_milli_mu) == (170, 45)
    load.report(Report(3, 120, 15), 1_000 + DISPATCH_UNSEEN_NS)
    assert (load.pending_prefill_milli_mu, load.decode_milli_mu) == (120, 15)


def test_a_first_token_ends_its_prefill_and_the_end_ends_everything() -> None:
    """Between reports the router's own view moves on."""
    load = ReplicaLoad("r")
    dispatch = load.dispatch(50, 30, 0)
    load.started(dispatch, 0)
    assert (load.pending_prefill_milli_mu, load.decode_milli_mu, load.in_flight) == (0, 30, 1)
    load.ended(dispatch, 0)
    assert (load.pending_prefill_milli_mu, load.decode_milli_mu, load.in_flight) == (0, 0, 0)


steps = st.lists(
    st.tuples(
        st.sampled_from(["enlist", "delist", "report", "link", "fail", "sweep", "wait"]),
        st.integers(0, 3),
        st.integers(0, 7),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(history=steps)
def test_what_a_pick_sees_is_what_is_believed_now(history: list[tuple[str, int, int]]) -> None:
    """After any history the kept candidates carry today's health, load and capacity of exactly the known replicas."""
    fleet, now_ns, subset = Fleet(), SECOND, ("r0", "r2", "r9")
    states, links = (READY, UNHEALTHY, DRAINING), list(Link)
    for number, (what, which, how) in enumerate(history):
        name = f"r{which}"
        match what:
            case "enlist":
                fleet.enlist(record(name, states[how % 3]), now_ns)
            case "delist":
                fleet.delist(name, now_ns)
            case "report":
                fleet.report(name, Report(number, how, how), states[how % 3], now_ns)
            case "link":
                fleet.link(name, links[how % len(links)], now_ns)
            case "fail":
                fleet.failed(name, now_ns)
            case "sweep":
                fleet.sweep(now_ns)
            case _:
                now_ns += how * SECOND
        known = {member.record.replica_id: fleet.health(member, now_ns) for member in fleet}
        seen = {each.replica_id: each.health for each in fleet.candidates("m", (), now_ns).members}
        assert seen == known
        pool = [each.replica_id for each in fleet.candidates("m", subset, now_ns).members]
        assert pool == ([name for name in subset if name in known] or sorted(known))


moments = st.lists(
    st.tuples(
        st.sampled_from(["send", "start", "end", "report", "look"]), st.integers(0, 999), st.integers(0, 3 * SECOND)
    ),
    max_size=30,
)


@settings(deadline=None)
@given(moments)
def test_candidates_have_what_happened_up_to_now(moments: list[tuple[str, int, int]]) -> None:
    """However much happens between two looks, a fleet's replica has what one has that works it out at every step."""
    fleet, alone, now_ns = Fleet(), ReplicaLoad("r"), SECOND
    fleet.enlist(engine_pb2.Replica(replica_id="r", model_id="m", capacity_milli_mu_per_minute=60_000), now_ns)
    alone.serve(60_000)
    open_: list[tuple[Dispatch, Dispatch]] = []
    for what, amount, later_ns in moments:
        now_ns += later_ns
        member = fleet.get("r")
        assert member is not None
        if what == "send":
            pair = [load.dispatch(amount, amount // 2, now_ns) for load in (member.load, alone)]
            open_.append((pair[0], pair[1]))
        elif what == "report":
            report = Report(amount, amount, amount // 2, dispatches_seen=amount % 7)
            fleet.report("r", report, READY, now_ns)
            alone.report(report, now_ns)
        elif what == "look":
            (seen,) = fleet.candidates("m", (), now_ns).members
            if alone.aged_ns != seen.aged_ns:
                alone.age(seen.aged_ns)
            assert (seen.told, seen.load_minutes, seen.requests, seen.in_flight) == (
                alone.told,
                alone.load_minutes,
                alone.requests,
                alone.in_flight,
            )
        elif open_:
            which = amount % len(open_)
            for dispatch in open_[which]:
                (dispatch.load.started if what == "start" else dispatch.load.ended)(dispatch, now_ns)
            if what == "end":
                del open_[which]
