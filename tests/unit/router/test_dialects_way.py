"""Which way a request goes by its replica's record, and what the router believes of replicas that requests go past."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.router.core.candidate import Health
from data_plane.router.core.fleet import Fleet, Link
from data_plane.router.core.loads import DISPATCH_UNSEEN_NS, Dispatch, Report
from data_plane.router.dialects.dispatch import DispatchingUpstream
from fairlead.engine.v1 import engine_pb2
from tests.unit.router.dialect_lab import Noted, request_of, start

READY = engine_pb2.REPLICA_STATE_READY
SECOND = 1_000_000_000


class Named:
    """An upstream that only says who it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, *given: Any, **named: Any) -> Any:
        return self

    def cancel(self) -> None:
        raise AssertionError

    pause = resume = cancel


@pytest.mark.parametrize(
    ("dialect", "way"),
    [
        (engine_pb2.DIALECT_UNSPECIFIED, "agent"),
        (engine_pb2.DIALECT_TRITON, "triton"),
        (engine_pb2.DIALECT_OPENAI, "openai"),
        (77, "agent"),
    ],
)
def test_the_record_decides(dialect: Any, way: str) -> None:
    """Shows each way, and that a dialect of a newer agent goes by the agent."""
    engines = {engine_pb2.DIALECT_TRITON: Named("triton"), engine_pb2.DIALECT_OPENAI: Named("openai")}
    upstream = DispatchingUpstream(Named("agent"), engines)
    noted = start(upstream, engine_pb2.Replica(dialect=dialect), request_of(), noted=Noted())
    assert getattr(noted.running, "name", None) == way


def fleet_of(dialect: Any) -> Fleet:
    fleet = Fleet()
    record = engine_pb2.Replica(
        replica_id="r", model_id="m", state=READY, dialect=dialect, capacity_milli_mu_per_minute=60_000
    )
    fleet.enlist(record, 0)
    fleet.link("r", Link.UP, 0)
    return fleet


def test_idle_reports_of_an_agent_that_sees_nothing_do_not_hide_what_was_sent() -> None:
    """Proves that a replica whose agent is passed by stays as busy as this router keeps it, report after report."""
    for dialect, known in ((engine_pb2.DIALECT_OPENAI, (100, 50)), (engine_pb2.DIALECT_UNSPECIFIED, (0, 0))):
        fleet = fleet_of(dialect)
        member = fleet.get("r")
        assert member is not None
        load = member.load
        first = load.dispatch(100, 50, 0)
        for sequence in range(1, 5):
            fleet.report("r", Report(sequence, 0, 0), READY, sequence * SECOND)
            load.settle()
            assert (load.pending_prefill_milli_mu, load.decode_milli_mu) == known
            assert load.requests == 1
            assert fleet.health(member, sequence * SECOND) is Health.READY
        load.started(first, 5 * SECOND)
        load.settle()
        assert load.pending_prefill_milli_mu == 0
        load.ended(first, 6 * SECOND)
        load.settle()
        assert (load.decode_milli_mu, load.requests) == (0, 0)


steps_of = st.lists(
    st.tuples(st.sampled_from(["send", "start", "end", "report"]), st.integers(0, 1000), st.integers(0, 2 * SECOND)),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(steps_of)
def test_what_is_known_at_a_report_is_what_is_under_way(steps: list[tuple[str, int, int]]) -> None:
    """Proves over all orders of sends, first tokens, ends and reports that prefill and decode are this router's own."""
    fleet = fleet_of(engine_pb2.DIALECT_TRITON)
    member = fleet.get("r")
    assert member is not None
    load, now_ns, sequence = member.load, 0, 0
    open_: list[Dispatch] = []
    for what, amount, later_ns in steps:
        now_ns += later_ns
        if what == "send":
            open_.append(load.dispatch(amount, amount // 2, now_ns))
        elif what == "start" and open_:
            load.started(open_[amount % len(open_)], now_ns)
        elif what == "end" and open_:
            load.ended(open_.pop(amount % len(open_)), now_ns)
        else:
            sequence += 1
            now_ns += DISPATCH_UNSEEN_NS
            fleet.report("r", Report(sequence, amount, amount, amount, amount % 9, amount), READY, now_ns)
            load.settle()
            waiting = sum(each.prefill_milli_mu for each in open_ if each.started_ns is None)
            assert load.pending_prefill_milli_mu == waiting
            assert load.decode_milli_mu == sum(each.decode_milli_mu for each in open_)
            assert load.requests == len(open_)
            assert load.queued_decode_milli_mu == load.kv_used_tokens == 0
        load.settle()
        assert load.pending_prefill_milli_mu <= sum(each.prefill_milli_mu for each in open_)
        assert load.decode_milli_mu <= sum(each.decode_milli_mu for each in open_)
