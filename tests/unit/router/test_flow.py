"""A request's life, against replicas that follow scripts."""

from __future__ import annotations

import asyncio
import gc
from contextlib import aclosing

import pytest

from common.clock import FakeClock
from data_plane.router.core.accounts import Outcome
from data_plane.router.exchange import Call, Delta, Finished
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
)
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.router_lab import KEY, MODEL, OTHER_KEY, TENANT, RouterLab, Script, prompt_request
from tests.support.waiting import eventually
from tests.unit.router.flow_lab import LOST, call, outcomes, refused, run


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
