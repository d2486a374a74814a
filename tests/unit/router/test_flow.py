"""A request's life, against replicas that follow scripts."""

from __future__ import annotations

import asyncio
import gc
from contextlib import aclosing

import pytest

from common.clock import FakeClock
from data_plane.router.config import RouterConfig
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.holds import Hold
from data_plane.router.core.retry import FLOOR_RETRIES
from data_plane.router.exchange import TRIES_KEPT_MAX, Call, Delta, Event, Finished
from data_plane.router.life import Exchange
from fairlead.errors import (
    ConflictError,
    FairleadError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    Reason,
    UnauthenticatedError,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.router_lab import KEY, MODEL, OTHER_KEY, TENANT, RouterLab, Script, prompt_request
from tests.support.waiting import eventually

LOST = UnavailableError("gone", reason=Reason.REPLICA_LOST)


def call(request: pb.GenerateRequest | None = None, *, key: str | None = KEY) -> Call:
    return Call(request or prompt_request(), f"Bearer {key}" if key else None)


async def collect(exchange: Exchange) -> tuple[str, Finished]:
    texts, finished = [], None
    async with aclosing(exchange.events()) as events:
        async for event in events:
            assert finished is None
            if isinstance(event, Delta):
                texts.append(event.text)
            else:
                finished = event
    assert finished is not None
    return "".join(texts), finished


async def run(lab: RouterLab, request: pb.GenerateRequest | None = None) -> tuple[str, Finished, Exchange]:
    exchange = lab.router.flow.open(call(request))
    text, finished = await collect(exchange)
    return text, finished, exchange


async def refused(lab: RouterLab, request: pb.GenerateRequest | None = None, *, key: str | None = KEY) -> FairleadError:
    exchange = lab.router.flow.open(call(request, key=key))
    with pytest.raises(FairleadError) as caught:
        await collect(exchange)
    return caught.value


def outcomes(lab: RouterLab) -> dict[tuple[str, str], int]:
    return {(outcome.value, reason): n for (_, _, outcome, reason), n in lab.router.accounts.finished.items()}


async def test_a_request_is_answered_priced_and_settled() -> None:
    """Text, usage, cost and receipt of a plain request agree with each other and with the books."""
    lab = RouterLab()
    text, finished, exchange = await run(lab)
    assert text == "Hello world"
    assert (finished.usage.input_tokens, finished.usage.output_tokens) == (7, 3)
    cost = finished.cost
    assert cost.settled_milli_mu == cost.prefill_milli_mu + cost.decode_milli_mu > 0
    assert exchange.receipt.settled_milli_mu == cost.settled_milli_mu == lab.router.holds.settled_milli_mu
    assert exchange.receipt.replica_id in ("r1", "r2")
    assert lab.router.accounts.settled_milli_mu[TENANT, MODEL] == cost.settled_milli_mu
    assert outcomes(lab) == {("completed", ""): 1}
    assert lab.received_equals_finished()


class Front:
    """A front door's end of one request: it has the request, and the request has it."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.ended = 0
        exchange.start(self)

    def on_piece(self, piece: bytes) -> bool:
        return bool(piece)

    def on_finished(self, finished: Finished) -> None:
        assert finished.usage.output_tokens == 3
        self.ended += 1

    def on_failed(self, error: FairleadError) -> None:
        assert error.metadata["request_id"]
        self.ended += 1


@pytest.mark.parametrize("burst", [3_000_000, 1])
async def test_a_request_that_has_ended_is_freed_at_once(burst: int) -> None:
    """Answered or refused, it leaves no circle behind: collections that look for those cost a third of all."""
    lab = RouterLab(burst=burst)

    async def ask() -> None:
        front = Front(lab.router.flow.open(call()))
        assert exchanges() == before + 1
        await eventually(lambda: front.ended)

    def exchanges() -> int:
        return sum(isinstance(each, Exchange) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = exchanges()
        await ask()
        await eventually(lambda: exchanges() == before)
    finally:
        gc.enable()


async def test_the_replica_gets_the_models_default_and_the_price() -> None:
    """max_tokens is filled in, the class is never unset, and the price travels along."""
    lab = RouterLab(["r1"])
    await run(lab)
    _, sent, _ = lab.upstream.calls[0]
    assert sent.request.sampling.max_tokens == 256
    assert sent.priority == pb.PRIORITY_INTERACTIVE
    assert sent.prefill_milli_mu > 0
    assert sent.decode_milli_mu > 0
    assert sent.tenant_id == TENANT


@pytest.mark.parametrize(
    "key", [None, "", "fl-abcdefghijklmnop-wrong", "fl-zzzz-secret", "sk-123", "fl--x", "x" * 5000]
)
async def test_wrong_keys_are_refused(key: str | None) -> None:
    """Unknown ids, wrong secrets and things that are no keys all get UNAUTHENTICATED, and no replica is asked."""
    lab = RouterLab()
    error = await refused(lab, key=key)
    assert isinstance(error, UnauthenticatedError)
    assert error.reason is (Reason.UNKNOWN_KEY if key else Reason.MISSING_KEY)
    assert not lab.upstream.calls
    assert lab.received_equals_finished()


async def test_a_suspended_tenant_is_refused() -> None:
    """Suspension works at once and says so."""
    lab = RouterLab()
    lab.tenants[TENANT].suspended = True
    assert (await refused(lab)).reason is Reason.TENANT_SUSPENDED


async def test_models_that_are_unknown_or_not_reserved_are_refused() -> None:
    """NOT_FOUND for no model, PERMISSION_DENIED without a reservation."""
    lab = RouterLab()
    assert isinstance(await refused(lab, pb.GenerateRequest(model="nope", prompt="x")), NotFoundError)
    assert isinstance(await refused(lab, pb.GenerateRequest(model="secret-model", prompt="x")), PermissionDeniedError)
    assert isinstance(await refused(lab, pb.GenerateRequest(prompt="x")), InvalidArgumentError)
    assert isinstance(await refused(lab, key=OTHER_KEY), PermissionDeniedError)


async def test_out_of_quota_says_when_to_come_back() -> None:
    """A tenant without quota gets QUOTA_USED_UP with a time after which the same request is admitted."""
    clock = FakeClock()
    lab = RouterLab(clock=clock, rate=60, burst=100)
    error: FairleadError | None = None
    for _ in range(100):
        try:
            await run(lab)
        except FairleadError as caught:
            error = caught
            break
    assert isinstance(error, QuotaExceededError)
    assert error.reason is Reason.QUOTA_USED_UP
    assert error.retry_after_s
    clock.advance(error.retry_after_s)
    await run(lab)
    assert lab.received_equals_finished()


async def test_quota_held_by_requests_in_flight_is_told_apart() -> None:
    """While another request holds the quota the reason is QUOTA_HELD; its refund makes room."""
    lab = RouterLab(["r1"], clock=FakeClock(), rate=60, burst=20)
    gate = asyncio.Event()
    lab.upstream.scripts["r1"] = Script(gate=gate)
    running = asyncio.create_task(run(lab))
    await eventually(lambda: lab.upstream.running == 1)
    assert (await refused(lab)).reason is Reason.QUOTA_HELD
    gate.set()
    await running
    await run(lab)
    assert lab.received_equals_finished()


async def test_a_request_above_the_burst_is_too_small_a_quota() -> None:
    """What can never be admitted is refused without a time to come back."""
    lab = RouterLab(rate=60, burst=1)
    error = await refused(lab)
    assert error.reason is Reason.QUOTA_TOO_SMALL
    assert error.retry_after_s is None


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


async def test_cancelling_stops_the_replica_and_charges_what_arrived() -> None:
    """Closing the events cancels upstream at once; delivered work is charged, the rest refunded."""
    lab = RouterLab(["r1"])
    step = asyncio.Event()
    lab.upstream.scripts["r1"] = Script(pieces=("a",) * 100, step=step)
    exchange = lab.router.flow.open(call())
    events = exchange.events()
    for _ in range(3):
        step.set()
        assert isinstance(await anext(events), Delta)
    await events.aclose()
    await eventually(lambda: lab.upstream.cancelled == ["r1"])
    assert exchange.receipt.output_tokens == 3
    assert exchange.receipt.settled_milli_mu == lab.router.holds.settled_milli_mu > 0
    assert outcomes(lab) == {("cancelled", "CANCELLED"): 1}
    assert lab.received_equals_finished()


async def test_cancelling_before_the_first_token_costs_nothing() -> None:
    """A client that leaves while it waits is refunded in full."""
    lab = RouterLab(["r1"])
    lab.upstream.scripts["r1"] = Script(gate=asyncio.Event())
    task = asyncio.create_task(run(lab))
    await eventually(lambda: lab.upstream.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lab.upstream.cancelled == ["r1"]
    assert lab.router.holds.settled_milli_mu == 0
    assert outcomes(lab) == {("cancelled", "CANCELLED"): 1}
    assert lab.received_equals_finished()


async def test_a_stream_longer_than_its_estimate_extends_its_hold_and_is_never_cut() -> None:
    """The whole answer arrives, into debt if need be, and the debt shows in the next refusal."""
    lab = RouterLab(["r1"], clock=FakeClock(), rate=60, burst=30)
    lab.upstream.scripts["r1"] = Script(pieces=("a",) * 3000)
    request = prompt_request(sampling=pb.SamplingParameters(max_tokens=3000))
    text, _, _ = await run(lab, request)
    assert len(text) == 3000
    assert lab.router.holds.view((TENANT, MODEL), lab.clock.monotonic_ns()).level_milli_mu < 0
    assert (await refused(lab)).reason is Reason.QUOTA_USED_UP


async def test_an_engine_that_refuses_is_not_retried() -> None:
    """What another replica would answer the same is passed on, counted as refused here too, and costs nothing."""
    lab = RouterLab()
    for name in ("r1", "r2"):
        lab.upstream.scripts[name] = Script(fail_before=InvalidArgumentError("too long", reason=Reason.PROMPT_TOO_LONG))
    assert (await refused(lab)).reason is Reason.PROMPT_TOO_LONG
    assert len(lab.upstream.calls) == 1
    assert outcomes(lab) == {("refused", "PROMPT_TOO_LONG"): 1}
    assert (lab.router.holds.open_holds, lab.router.holds.settled_milli_mu) == (0, 0)


async def test_a_repeated_request_id_is_answered_once_and_billed_once() -> None:
    """In flight: REQUEST_IN_FLIGHT. Finished: the same answer again, no replica asked, nothing charged."""
    lab = RouterLab(["r1"])
    gate = asyncio.Event()
    lab.upstream.scripts["r1"] = Script(gate=gate)
    request = prompt_request(request_id="once")
    running = asyncio.create_task(run(lab, request))
    await eventually(lambda: lab.upstream.running == 1)
    assert isinstance(await refused(lab, request), ConflictError)
    gate.set()
    text, finished, _ = await running
    charged = lab.router.holds.settled_milli_mu
    again, finished_again, exchange = await run(lab, request)
    assert (again, finished_again.usage) == (text, finished.usage)
    assert exchange.receipt.replayed
    assert len(lab.upstream.calls) == 1
    assert lab.router.holds.settled_milli_mu == charged
    error = await refused(lab, prompt_request("something else", request_id="once"))
    assert (error.field, error.reason) == ("request_id", Reason.INVALID_ARGUMENT)
    assert lab.received_equals_finished()


async def test_a_failed_request_id_may_be_tried_again() -> None:
    """Failure is not remembered as an answer."""
    lab = RouterLab(["r1"])
    lab.upstream.scripts["r1"] = Script(fail_before=InternalError("x"))
    await refused(lab, prompt_request(request_id="again"))
    lab.upstream.scripts["r1"] = Script()
    assert (await run(lab, prompt_request(request_id="again")))[0] == "Hello world"


async def test_batch_waits_for_quota_instead_of_being_refused() -> None:
    """A batch request out of quota is admitted once the bucket has refilled."""
    lab = RouterLab(["r1"], rate=600_000, burst=20)
    desk = asyncio.create_task(lab.router.desk.run())
    batch = prompt_request(priority=pb.PRIORITY_BATCH)
    results = await asyncio.gather(*(run(lab, batch) for _ in range(10)))
    assert [text for text, _, _ in results] == ["Hello world"] * 10
    desk.cancel()
    assert lab.received_equals_finished()


def full(retry_after_s: float = 0.01) -> Script:
    return Script(fail_before=QuotaExceededError("full", reason=Reason.QUEUE_FULL, retry_after_s=retry_after_s))


async def test_batch_waits_while_every_replica_is_full() -> None:
    """Batch gives its hold back, waits where all batch waits, and is served once there is room; it counts as wanted
    once. Interactive is told at once."""
    lab = RouterLab(["r1"])
    lab.upstream.scripts["r1"] = full()
    assert (await refused(lab)).reason is Reason.QUEUE_FULL
    desk = asyncio.create_task(lab.router.desk.run())
    tally = lab.router.demand._tallies[TENANT, MODEL]
    asked_before = tally.asked
    exchange = lab.router.flow.open(call(prompt_request(priority=pb.PRIORITY_BATCH)))
    waiting = asyncio.create_task(collect(exchange))
    calls = len(lab.upstream.calls)
    for more in range(1, 4):
        await eventually(lambda more=more: len(lab.upstream.calls) >= calls + more)  # type: ignore[misc]
        await eventually(lambda: lab.router.desk.waiting())
        receipt = exchange.receipt
        assert lab.router.holds.open_holds == 0
        assert (receipt.admitted, receipt.held_milli_mu) == (False, 0)
        assert receipt.bucket is not None
        assert (receipt.bucket.held_milli_mu, receipt.bucket.open_holds) == (0, 0)
    lab.upstream.scripts["r1"] = Script()
    assert (await waiting)[0] == "Hello world"
    assert receipt.admitted
    assert tally.asked - asked_before == receipt.estimated_milli_mu
    assert receipt.wait_ns > 3 * 200_000_000  # all its waits together
    desk.cancel()
    assert lab.received_equals_finished()


async def test_one_batch_request_goes_ahead_to_a_full_replica() -> None:
    """Fifty wait while the only replica is full: it is asked by one at a time, and once it serves that one all go."""
    lab = RouterLab(["r1"], config=RouterConfig(batch_waiting_max=60, batch_waiting_per_tenant_max=60))
    lab.upstream.scripts["r1"] = full()
    batch = prompt_request(priority=pb.PRIORITY_BATCH)
    assert (await refused(lab)).reason is Reason.QUEUE_FULL
    desk = asyncio.create_task(lab.router.desk.run())
    waiting = [asyncio.create_task(run(lab, batch)) for _ in range(50)]
    await eventually(lambda: len(lab.upstream.calls) >= 4)
    assert len(lab.upstream.calls) < 10
    assert lab.router.holds.open_holds <= 1
    lab.upstream.scripts["r1"] = Script()
    assert {text for text, _, _ in await asyncio.gather(*waiting)} == {"Hello world"}
    desk.cancel()
    assert lab.received_equals_finished()


async def test_batch_that_comes_back_waits_within_the_bounds() -> None:
    """No place left for a request that found every replica full: it is told QUEUE_FULL and holds nothing."""
    lab = RouterLab(["r1"], config=RouterConfig(batch_waiting_max=1))
    gate = asyncio.Event()
    lab.upstream.scripts["r1"] = Script(gate=gate, fail_after=0, failure=full(5.0).fail_before)
    batch = prompt_request(priority=pb.PRIORITY_BATCH)
    running = [asyncio.create_task(run(lab, batch)) for _ in range(3)]
    await eventually(lambda: lab.upstream.running == 3)
    gate.set()
    await eventually(lambda: sum(task.done() for task in running) == 2)
    for task in running:
        if task.done():
            with pytest.raises(QuotaExceededError) as caught:
                task.result()
            assert caught.value.reason is Reason.QUEUE_FULL
        else:
            assert sum(lab.router.desk.waiting().values()) > 0
            task.cancel()
    await asyncio.wait(running)
    assert lab.received_equals_finished()


async def test_failover_is_left_after_any_number_of_returns() -> None:
    """Attempts count since the last admission: a loss after many full replicas still goes to another replica; the
    newest tries are kept."""
    lab = RouterLab(["r1", "r2", "r3"])
    for name in ("r1", "r2", "r3"):
        lab.upstream.scripts[name] = full()
    desk = asyncio.create_task(lab.router.desk.run())
    exchange = lab.router.flow.open(call(prompt_request(priority=pb.PRIORITY_BATCH)))
    waiting = asyncio.create_task(collect(exchange))
    await eventually(lambda: len(lab.upstream.calls) >= 18, timeout_s=20.0)
    await eventually(lambda: lab.router.desk.waiting())
    lab.upstream.scripts = {"r1": Script(fail_before=LOST), "r2": Script(), "r3": Script()}
    lab.router.fleet.get("r2").load.dispatch(10**6, 0, lab.clock.monotonic_ns())  # type: ignore[union-attr]
    lab.router.fleet.get("r3").load.dispatch(10**6, 0, lab.clock.monotonic_ns())  # type: ignore[union-attr]
    assert (await waiting)[0] == "Hello world"
    assert exchange.receipt.attempts == len(lab.upstream.calls) > TRIES_KEPT_MAX == len(exchange.receipt.tries)
    assert [each.failure_reason for each in exchange.receipt.tries[-2:]] == ["REPLICA_LOST", ""]
    desk.cancel()
    assert lab.received_equals_finished()


async def test_batch_is_told_when_its_whole_quota_became_too_small() -> None:
    """It waits, and the quota shrinks below it: refused with QUOTA_TOO_SMALL, and not kept until its deadline."""
    lab = RouterLab(["r1"], rate=1, burst=20)
    kept = lab.router.holds.hold((TENANT, MODEL), 15, lab.clock.monotonic_ns())
    assert isinstance(kept, Hold)
    desk = asyncio.create_task(lab.router.desk.run())
    waiting = asyncio.create_task(run(lab, prompt_request(priority=pb.PRIORITY_BATCH)))
    await eventually(lambda: lab.router.desk.waiting())
    lab.lease(1, 5)
    with pytest.raises(QuotaExceededError) as caught:
        await waiting
    assert caught.value.reason is Reason.QUOTA_TOO_SMALL
    desk.cancel()
    lab.router.holds.refund(kept, lab.clock.monotonic_ns())
    assert lab.received_equals_finished()


async def test_batch_waits_for_its_first_lease() -> None:
    """A tenant whose lease has not come yet has its batch wait; its interactive request is refused."""
    lab = RouterLab(["r1"])
    lab.router.holds.apply({}, expires_ns=lab.clock.monotonic_ns(), now_ns=lab.clock.monotonic_ns())
    assert (await refused(lab)).reason is Reason.QUOTA_USED_UP
    desk = asyncio.create_task(lab.router.desk.run())
    waiting = asyncio.create_task(run(lab, prompt_request(priority=pb.PRIORITY_BATCH)))
    await eventually(lambda: lab.router.desk.waiting())
    lab.lease(600_000, 1_000)
    assert (await waiting)[0] == "Hello world"
    desk.cancel()


async def test_batch_ends_at_its_deadline() -> None:
    """A batch request whose quota does not come back ends as a refusal at its deadline, holding nothing."""
    lab = RouterLab(["r1"], rate=1, burst=20)
    kept = lab.router.holds.hold((TENANT, MODEL), 15, lab.clock.monotonic_ns())
    assert isinstance(kept, Hold)
    desk = asyncio.create_task(lab.router.desk.run())
    deadline_ns = lab.clock.monotonic_ns() + 100_000_000
    exchange = lab.router.flow.open(Call(prompt_request(priority=pb.PRIORITY_BATCH), f"Bearer {KEY}", deadline_ns))
    with pytest.raises(FairleadError) as caught:
        await collect(exchange)
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    assert outcomes(lab) == {("refused", "DEADLINE_EXCEEDED"): 1}
    desk.cancel()
    lab.router.holds.refund(kept, lab.clock.monotonic_ns())
    assert lab.received_equals_finished()


async def test_a_request_stuck_at_its_client_ends_at_its_deadline() -> None:
    """A client that never reads cannot keep a request alive beyond its deadline."""
    lab = RouterLab(["r1"])
    lab.upstream.scripts["r1"] = Script(pieces=("a",) * 50)
    deadline_ns = lab.clock.monotonic_ns() + 50_000_000

    exchange = lab.router.flow.open(Call(prompt_request(), f"Bearer {KEY}", deadline_ns))

    async def reader() -> None:
        async with aclosing(exchange.events()) as events:
            async for _ in events:
                await asyncio.Event().wait()  # a write that never returns

    stuck = asyncio.create_task(reader())
    await eventually(lambda: outcomes(lab))
    stuck.cancel()
    assert outcomes(lab) == {("failed", "DEADLINE_EXCEEDED"): 1}
    assert lab.upstream.cancelled == ["r1"]
    assert lab.received_equals_finished()


async def test_a_session_stays_on_its_replica_while_loads_are_even() -> None:
    """Requests of one session go to one replica; sessions spread over all."""
    lab = RouterLab([f"r{i}" for i in range(8)])
    homes: dict[str, set[str]] = {}
    for turn in range(5):
        for session in range(20):
            _, _, exchange = await run(lab, prompt_request("x" * 400 * (turn + 1), session_id=f"s{session}"))
            homes.setdefault(f"s{session}", set()).add(exchange.receipt.replica_id)
    assert all(len(replicas) == 1 for replicas in homes.values())
    assert len(set.union(*homes.values())) >= 5


async def test_the_spans_tell_the_story_without_the_text() -> None:
    """A server span by the GenAI conventions, a client span per attempt below it, no prompt or output anywhere."""
    lab = RouterLab(["r1", "r2"])
    lab.upstream.scripts["r1"] = Script(fail_before=LOST)
    lab.router.fleet.get("r2").load.dispatch(10**6, 0, lab.clock.monotonic_ns())  # type: ignore[union-attr]
    await run(lab, prompt_request("CANARY-PROMPT"))
    spans = lab.spans.get_finished_spans()
    request = next(span for span in spans if span.name == f"text_completion {MODEL}")
    attempts = [span for span in spans if span.name.endswith("EngineService/Generate")]
    assert len(attempts) == 2
    assert all(span.parent and span.parent.span_id == request.context.span_id for span in attempts)
    assert request.attributes is not None
    assert request.attributes["gen_ai.usage.output_tokens"] == 3
    assert request.attributes["fairlead.settled_milli_mu"] == lab.router.holds.settled_milli_mu
    trace_id = f"{request.context.trace_id:032x}"
    assert all(metadata["traceparent"].split("-")[1] == trace_id for _, _, metadata in lab.upstream.calls)
    dump = "".join(span.to_json() for span in spans)
    assert "CANARY" not in dump
    assert "Hello" not in dump


async def test_outcomes_add_up_over_a_mixed_crowd() -> None:
    """received = completed + failed + refused + cancelled, and the settled counter equals the receipts' sum."""
    lab = RouterLab(["r1", "r2", "r3"], rate=60_000, burst=400)
    lab.upstream.scripts["r2"] = Script(pieces=("a",) * 6, fail_after=3, failure=LOST)
    lab.upstream.scripts["r3"] = Script(fail_before=LOST)
    charged = 0

    async def one(number: int) -> None:
        nonlocal charged
        key = KEY if number % 5 else OTHER_KEY
        exchange = lab.router.flow.open(call(prompt_request("y" * (number % 50 + 1)), key=key))
        try:
            async with aclosing(exchange.events()) as events:
                async for _ in events:
                    if number % 7 == 0:
                        break
                    await asyncio.sleep(0)
        except FairleadError:
            pass
        charged += exchange.receipt.settled_milli_mu

    await asyncio.gather(*(one(number) for number in range(200)))
    accounts = lab.router.accounts
    assert accounts.received == 200 == sum(accounts.finished.values())
    assert {outcome for _, _, outcome, _ in accounts.finished} == set(Outcome)
    assert charged == lab.router.holds.settled_milli_mu == sum(accounts.settled_milli_mu.values())
    assert lab.received_equals_finished()
