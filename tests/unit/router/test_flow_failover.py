"""The flow of a request whose replicas fail, before the first token and after it."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from common.clock import FakeClock
from data_plane.router.core.retry import FLOOR_RETRIES
from data_plane.router.exchange import Event
from fairlead.errors import (
    InvalidArgumentError,
    Reason,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.router_lab import RouterLab, Script, prompt_request
from tests.unit.router.flow_lab import LOST, call, outcomes, refused, run


async def test_a_replica_that_fails_before_the_first_token_is_replaced_unseen() -> None:
    """The client sees one clean answer; the failed replica is not asked twice; one settlement."""
    lab = RouterLab(["r1", "r2"], clock=FakeClock())
    lab.upstream.scripts["r1"] = Script(fail_before=LOST)
    lab.router.fleet.get("r2").load.dispatch(10**6, 0, lab.clock.monotonic_ns())  # type: ignore[union-attr]  # r1 first
    for done in range(FLOOR_RETRIES):
        text, _, exchange = await run(lab)
        assert text == "Hello world"
        assert exchange.receipt.replica_id == "r2"
        assert [replica_id for replica_id, _, _ in lab.upstream.calls[2 * done :]] == ["r1", "r2"]
    assert outcomes(lab) == {("completed", ""): FLOOR_RETRIES}
    assert lab.received_equals_finished()


async def test_when_every_replica_fails_the_request_is_lost_and_free() -> None:
    """REPLICA_LOST after two attempts at most, nothing charged, nothing held."""
    lab = RouterLab(["r1", "r2", "r3"])
    for replica_id in ("r1", "r2", "r3"):
        lab.upstream.scripts[replica_id] = Script(fail_before=LOST)
    error = await refused(lab)
    assert error.reason is Reason.REPLICA_LOST
    assert len(lab.upstream.calls) == 2
    assert lab.router.holds.settled_milli_mu == 0
    assert outcomes(lab) == {("failed", "REPLICA_LOST"): 1}
    assert lab.received_equals_finished()


async def test_retries_stay_within_the_budget_when_everything_fails() -> None:
    """With every engine failing, 100 requests cause at most the budget's floor of extra attempts."""
    lab = RouterLab(["r1", "r2"], clock=FakeClock())
    for replica_id in ("r1", "r2"):
        lab.upstream.scripts[replica_id] = Script(fail_before=LOST)
    for number in range(100):
        # Unlike prompts: one that lost two replicas is refused without another attempt.
        await refused(lab, prompt_request(f"Once upon a time {number}"))
    assert 100 < len(lab.upstream.calls) <= 120


async def test_a_refusal_that_started_nothing_is_retried_without_budget() -> None:
    """A draining replica costs no work: any number of requests go elsewhere."""
    lab = RouterLab(["r1", "r2"], clock=FakeClock())
    lab.upstream.scripts["r1"] = Script(fail_before=UnavailableError("draining", reason=Reason.SHUTTING_DOWN))
    for _ in range(50):
        assert (await run(lab))[0] == "Hello world"
        lab.add_replica("r1")


async def test_without_any_replica_the_reason_is_no_replica() -> None:
    """NO_REPLICA with a time to come back, nothing charged."""
    lab = RouterLab([])
    error = await refused(lab)
    assert (error.reason, lab.router.holds.settled_milli_mu) == (Reason.NO_REPLICA, 0)
    assert error.retry_after_s
    assert lab.received_equals_finished()


async def test_a_stream_that_breaks_says_how_much_arrived_and_charges_that() -> None:
    """After the first token an ordinary request ends with STREAM_BROKEN, charged for what was delivered."""
    lab = RouterLab(["r1", "r2"])
    lab.upstream.scripts = {name: Script(pieces=("a",) * 9, fail_after=4, failure=LOST) for name in ("r1", "r2")}
    exchange = lab.router.flow.open(call())
    got: list[Event] = []
    with pytest.raises(UnavailableError) as caught:
        async with aclosing(exchange.events()) as events:
            async for event in events:
                got.append(event)
    assert caught.value.reason is Reason.STREAM_BROKEN
    assert caught.value.metadata["output_tokens"] == "4" == str(len(got))
    assert exchange.receipt.settled_milli_mu == lab.router.holds.settled_milli_mu > 0
    assert outcomes(lab) == {("failed", "STREAM_BROKEN"): 1}
    assert lab.received_equals_finished()


@pytest.mark.parametrize("broken_at", [1, 2, 5])
async def test_a_greedy_stream_continues_elsewhere_with_the_same_text(broken_at: int) -> None:
    """A greedy request survives its replica's death: same text, every token once, charged once."""
    pieces = ("The ", "quick ", "brown ", "fox ", "jumps ", "over")
    lab = RouterLab(["r1", "r2"])
    lab.upstream.scripts = {
        "r1": Script(pieces=pieces, fail_after=broken_at, failure=LOST),
        "r2": Script(pieces=("The quick ", "brown fox ", "jumps over")) if broken_at == 5 else Script(pieces=pieces),
    }
    lab.router.fleet.get("r2").load.dispatch(10**6, 0, lab.clock.monotonic_ns())  # type: ignore[union-attr]
    text, finished, exchange = await run(lab, prompt_request(sampling=pb.SamplingParameters(temperature=0.0)))
    assert text == "The quick brown fox jumps over"
    assert [replica_id for replica_id, _, _ in lab.upstream.calls] == ["r1", "r2"]
    assert finished.cost.settled_milli_mu == lab.router.holds.settled_milli_mu == exchange.receipt.settled_milli_mu
    assert outcomes(lab) == {("completed", ""): 1}


async def test_a_greedy_stream_that_would_change_its_text_breaks_instead() -> None:
    """Where the second replica says something else, the client gets a typed error, never a mixed text."""
    lab = RouterLab(["r1", "r2"])
    lab.upstream.scripts = {
        "r1": Script(pieces=("a", "b", "c"), fail_after=2, failure=LOST),
        "r2": Script(pieces=("a", "X", "c")),
    }
    lab.router.fleet.get("r2").load.dispatch(10**6, 0, lab.clock.monotonic_ns())  # type: ignore[union-attr]
    error = await refused(lab, prompt_request(sampling=pb.SamplingParameters(temperature=0.0)))
    assert error.reason is Reason.STREAM_BROKEN
    assert lab.received_equals_finished()


async def test_an_engine_that_refuses_is_not_retried() -> None:
    """What another replica would answer the same is passed on, counted as refused here too, and costs nothing."""
    lab = RouterLab()
    for name in ("r1", "r2"):
        lab.upstream.scripts[name] = Script(fail_before=InvalidArgumentError("too long", reason=Reason.PROMPT_TOO_LONG))
    assert (await refused(lab)).reason is Reason.PROMPT_TOO_LONG
    assert len(lab.upstream.calls) == 1
    assert outcomes(lab) == {("refused", "PROMPT_TOO_LONG"): 1}
    assert (lab.router.holds.open_holds, lab.router.holds.settled_milli_mu) == (0, 0)
