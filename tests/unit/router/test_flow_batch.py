"""The flow of batch requests, which wait where others are refused."""

from __future__ import annotations

import asyncio

import pytest

from data_plane.router.config import RouterConfig
from data_plane.router.core.holds import Hold
from data_plane.router.exchange import TRIES_KEPT_MAX, Call
from fairlead.errors import (
    FairleadError,
    QuotaExceededError,
    Reason,
)
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.router_lab import KEY, MODEL, TENANT, RouterLab, Script, prompt_request
from tests.support.waiting import eventually
from tests.unit.router.flow_lab import LOST, call, collect, outcomes, refused, run


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
