"""A prompt that costs replicas: how its requests are ended, and how it is tried again."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing

import pytest

from common.clock import FakeClock
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.loads import Report
from data_plane.router.exchange import Call, Receipt
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FailedPreconditionError, FairleadError, QuotaExceededError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.router_lab import KEY, RouterLab, Script, prompt_request
from tests.support.waiting import eventually

READY = engine_pb2.REPLICA_STATE_READY
LOST = UnavailableError("gone", reason=Reason.REPLICA_LOST)


def started(lab: RouterLab, request: pb.GenerateRequest) -> tuple[Receipt, asyncio.Task[None]]:
    """Runs a request; the task ends with it."""
    exchange = lab.router.flow.open(Call(request, f"Bearer {KEY}"))

    async def run() -> None:
        async with aclosing(exchange.events()) as events:
            async for _ in events:
                pass

    return exchange.receipt, asyncio.create_task(run())


async def failed(task: asyncio.Task[None]) -> FairleadError:
    with pytest.raises(FairleadError) as caught:
        await task
    return caught.value


@pytest.fixture
def lab() -> RouterLab:
    return RouterLab(["r1", "r2"], clock=FakeClock())


async def test_a_prompt_that_is_refused_from_now_on_is_not_tried_again_by_its_own_request(lab: RouterLab) -> None:
    """One that lost its second replica takes no third one with it, though it has an attempt left."""
    lab.add_replica("r3")
    for replica_id in ("r1", "r2", "r3"):
        lab.upstream.scripts[replica_id] = Script(gate=asyncio.Event(), fail_after=0, failure=LOST)
    poison = prompt_request("poison")
    runs = [started(lab, poison) for _ in range(2)]
    await eventually(lambda: len(lab.upstream.calls) == 2)
    assert len({call[0] for call in lab.upstream.calls}) == 2
    for script in lab.upstream.scripts.values():
        assert script.gate is not None
        script.gate.set()
    for _, task in runs:
        assert (await failed(task)).reason in (Reason.REPLICA_LOST, Reason.REQUEST_QUARANTINED)
    assert len(lab.upstream.calls) == 3
    assert lab.received_equals_finished()


async def test_the_one_try_after_a_refusal_is_spent_when_the_prompt_is_sent(lab: RouterLab) -> None:
    """A refusal for quota wastes it not; of equal prompts that come together one goes, the others are refused."""
    for replica_id in ("r1", "r2"):
        lab.upstream.scripts[replica_id] = Script(fail_before=LOST)
    poison = prompt_request("poison")
    await failed(started(lab, poison)[1])
    lab.clock.advance(61.0)  # type: ignore[attr-defined]  # the lab's clock is a fake one
    lab.lease(0, 0)
    assert isinstance(await failed(started(lab, poison)[1]), QuotaExceededError)
    lab.lease(6_000_000, 3_000_000)
    lab.clock.advance(1.0)  # type: ignore[attr-defined]  # as above
    gate = asyncio.Event()
    for replica_id in ("r1", "r2"):
        lab.upstream.scripts[replica_id] = Script(gate=gate)
        lab.router.fleet.report(replica_id, Report(9, 0, 0), READY, lab.clock.monotonic_ns())
    runs = [started(lab, poison) for _ in range(3)]
    await eventually(lambda: sum(task.done() for _, task in runs) == 2)
    gate.set()
    ended = await asyncio.gather(*(task for _, task in runs), return_exceptions=True)
    refused = [each for each in ended if isinstance(each, FailedPreconditionError)]
    assert [each.reason for each in refused] == [Reason.REQUEST_QUARANTINED] * 2
    assert len(lab.upstream.calls) == 2 + 1
    assert Counter(receipt.outcome for receipt, _ in runs) == {Outcome.COMPLETED: 1, Outcome.REFUSED: 2}
    await started(lab, poison)[1]
    assert lab.received_equals_finished()
