"""How an admitted request finds its replica: key, policy, wait for room, deadlines, poison, what replicas are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from common.clock import NS_PER_S, FakeClock
from common.shard_map import shard_key
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.holds import LeaseTerms
from data_plane.router.core.loads import Report
from data_plane.router.exchange import Call, Receipt
from data_plane.router.routing_metrics import RoutingCollector
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    FairleadError,
    QuotaExceededError,
    Reason,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.sharding.v1 import sharding_pb2
from model_units.prefix import PREFIX_BLOCK_BYTES, prefix_blocks, prompt_chunks
from tests.support.router_lab import KEY, MODEL, OTHER_KEY, OTHER_TENANT, TENANT, RouterLab, Script, prompt_request
from tests.support.waiting import eventually

LATE = admin_pb2.ROUTING_POLICY_LATE_BINDING
BUSY_MILLI_MU = 50_000
"""Half a minute of a lab replica's work."""

LONG = "x" * 30_000
"""A prompt of more than a tenth of a second."""

LOST = UnavailableError("gone", reason=Reason.REPLICA_LOST)


class Reports:
    """What the lab's replicas report.

    Args:
        lab: Whose.
    """

    def __init__(self, lab: RouterLab) -> None:
        self._lab = lab
        self._number = 10

    def __call__(self, replica_id: str, pending_milli_mu: int) -> None:
        """A replica reports so much prefill."""
        self._number += 1
        fleet, now_ns = self._lab.router.fleet, self._lab.clock.monotonic_ns()
        fleet.report(replica_id, Report(self._number, pending_milli_mu, 0), engine_pb2.REPLICA_STATE_READY, now_ns)
        member = fleet.get(replica_id)
        assert member is not None
        self._lab.router.routing.freed(member)


def started(
    lab: RouterLab, request: pb.GenerateRequest, *, deadline_s: float | None = None, key: str = KEY
) -> tuple[Receipt, asyncio.Task[None]]:
    """Runs a request; the task ends with it."""
    now_ns = lab.clock.monotonic_ns()
    deadline_ns = None if deadline_s is None else now_ns + int(deadline_s * NS_PER_S)
    exchange = lab.router.flow.open(Call(request, f"Bearer {key}", deadline_ns))

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
    lab = RouterLab(["r1", "r2"], clock=FakeClock())
    lab.models[MODEL].routing_policy = LATE
    return lab


@pytest.fixture
async def busy(lab: RouterLab) -> Reports:
    """The reports of the lab's replicas, all of which are busy."""
    reports = Reports(lab)
    reports("r1", BUSY_MILLI_MU)
    reports("r2", BUSY_MILLI_MU)
    return reports


def waiting(lab: RouterLab) -> int:
    return sum(sum(tenants.values()) for tenants in lab.router.waiting.waiting().values())


async def test_a_request_waits_until_a_replica_has_room(lab: RouterLab, busy: Reports) -> None:
    """Nobody is sent to a busy replica; the one that gets room is chosen; the wait is in the receipt."""
    receipt, task = started(lab, prompt_request())
    await eventually(lambda: waiting(lab) == 1)
    assert not lab.upstream.calls
    lab.clock.advance(0.5)  # type: ignore[attr-defined]  # the lab's clock is a fake one
    busy("r2", 0)
    await task
    (tried,) = receipt.tries
    assert (tried.choice.replica_id, tried.choice.policy) == ("r2", "late_binding")
    assert tried.wait_ns == NS_PER_S // 2
    assert receipt.room_wait_ns == 0
    assert waiting(lab) == 0
    assert lab.received_equals_finished()


async def test_nothing_waits_where_there_is_room_or_the_policy_does_not_want_it(lab: RouterLab, busy: Reports) -> None:
    """An idle replica is taken at once, and so is a busy one under every other policy."""
    busy("r1", 0)
    receipt, task = started(lab, prompt_request())
    await task
    assert receipt.tries[0].choice.replica_id == "r1"
    busy("r1", BUSY_MILLI_MU)
    for policy in admin_pb2.RoutingPolicy.values():
        if policy not in (LATE, admin_pb2.ROUTING_POLICY_UNSPECIFIED):
            lab.models[MODEL].routing_policy = policy
            receipt, task = started(lab, prompt_request())
            await task
            name = admin_pb2.RoutingPolicy.Name(policy).removeprefix("ROUTING_POLICY_").lower()
            assert (receipt.tries[0].choice.policy, receipt.tries[0].wait_ns) == (name, 0)


async def test_room_is_given_to_the_shortest_and_no_more_than_there_is(lab: RouterLab, busy: Reports) -> None:
    """Of three that wait the shortest prompt goes first; each takes its part of the room."""
    lab.upstream.scripts["r1"] = Script(gate=asyncio.Event())
    long = "x" * 24_000
    requests = [prompt_request(long), prompt_request("y" * 10_000), prompt_request("z" * 12_000)]
    runs = [started(lab, request) for request in requests]
    await eventually(lambda: waiting(lab) == 3)
    busy("r1", 332)  # a fifth of a second is 333
    await eventually(lambda: len(lab.upstream.calls) == 1)
    assert lab.upstream.calls[0][1].request.prompt[0] == "y"
    assert waiting(lab) == 2
    for _, task in runs:
        task.cancel()
    await asyncio.gather(*(task for _, task in runs), return_exceptions=True)
    assert waiting(lab) == 0
    assert lab.received_equals_finished()


async def test_cancelled_late_and_displaced_waits_leave_nothing_behind(lab: RouterLab, busy: Reports) -> None:
    """A client that leaves, a deadline that passes: everything held is given back."""
    _, task = started(lab, prompt_request())
    await eventually(lambda: waiting(lab) == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    lab.clock.advance(20.0)  # type: ignore[attr-defined]  # as above
    _, task = started(lab, prompt_request(), deadline_s=0.05)
    error = await failed(task)
    assert isinstance(error, DeadlineExceededError)
    assert waiting(lab) == 0
    assert lab.received_equals_finished()
    assert not lab.upstream.calls


async def test_a_replica_lost_while_waiting_is_not_waited_for(lab: RouterLab, busy: Reports) -> None:
    """When the last replica goes, those who wait are told at once that there is none."""
    _, task = started(lab, prompt_request())
    await eventually(lambda: waiting(lab) == 1)
    now_ns = lab.clock.monotonic_ns()
    for replica_id in ("r1", "r2"):
        member = lab.router.fleet.get(replica_id)
        assert member is not None
        lab.router.fleet.report(replica_id, Report(99, 0, 0), engine_pb2.REPLICA_STATE_DRAINING, now_ns)
        lab.router.routing.freed(member)
    assert (await failed(task)).reason is Reason.NO_REPLICA


async def test_a_new_assignment_moves_those_who_wait(lab: RouterLab, busy: Reports) -> None:
    """Who waits for a busy subset goes to the replica that a newer assignment gives it."""
    slices = [sharding_pb2.Slice(replicas=[0])]

    def take(number: int, replica_id: str) -> None:
        generation = sharding_pb2.Generation(incarnation=1, number=number)
        made = sharding_pb2.Assignment(model_id=MODEL, generation=generation, replica_ids=[replica_id], slices=slices)
        lab.assignments.take(made, "test")

    take(1, "r1")
    busy("r2", 0)
    receipt, task = started(lab, prompt_request())
    await eventually(lambda: waiting(lab) == 1)
    take(2, "r2")
    await task
    ((replica_id, request, _),) = lab.upstream.calls
    assert replica_id == "r2"
    assert request.assignment == sharding_pb2.Generation(incarnation=1, number=2)
    assert receipt.tries[0].choice.candidate_count == 1


async def test_a_full_line_refuses_with_a_time_to_come_back(lab: RouterLab, busy: Reports) -> None:
    """One tenant's flood is bounded: what finds no place is refused, its hold returned."""
    lab.router.waiting._waiting_max = 2
    runs = [started(lab, prompt_request()) for _ in range(2)]
    await eventually(lambda: waiting(lab) == 2)
    error = await failed(started(lab, prompt_request())[1])
    assert isinstance(error, QuotaExceededError)
    assert error.reason is Reason.QUEUE_FULL
    assert error.retry_after_s
    assert lab.router.accounts.finished[TENANT, MODEL, Outcome.REFUSED, "QUEUE_FULL"] == 1
    busy("r1", 0)
    await asyncio.gather(*(task for _, task in runs))
    assert lab.received_equals_finished()


async def test_who_waits_goes_by_the_policy_of_now(lab: RouterLab, busy: Reports) -> None:
    """A model that does not wait for room any more lets those go who still do, and does not starve them."""
    receipt, task = started(lab, prompt_request(), deadline_s=600.0)
    await eventually(lambda: waiting(lab) == 1)
    lab.models[MODEL].routing_policy = admin_pb2.ROUTING_POLICY_COST
    looking = asyncio.create_task(lab.router.waiting.run())
    await asyncio.wait_for(task, 10.0)
    assert receipt.tries[0].choice.policy == "cost"
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_only_replicas_with_room_are_picked(lab: RouterLab) -> None:
    """Room at one replica sends nobody to another that has none, though that would score better."""
    fleet, now_ns = lab.router.fleet, lab.clock.monotonic_ns()
    fleet.report("r1", Report(500, 0, 80_000), engine_pb2.REPLICA_STATE_READY, now_ns)  # much decode, no prefill
    fleet.report("r2", Report(501, 2_000, 0), engine_pb2.REPLICA_STATE_READY, now_ns)  # 1.2 s of prefill
    for replica_id in ("r1", "r2"):
        lab.upstream.scripts[replica_id] = Script(gate=asyncio.Event())
    runs = [started(lab, prompt_request(f"{number:020000}")) for number in range(5)]
    await eventually(lambda: waiting(lab) and lab.upstream.calls)
    assert {call[0] for call in lab.upstream.calls} == {"r1"}
    for _, task in runs:
        task.cancel()
    await asyncio.gather(*(task for _, task in runs), return_exceptions=True)


async def test_batch_waits_for_room_without_quota(lab: RouterLab, busy: Reports) -> None:
    """While all replicas are busy it holds nothing; with room no more are let in than there is room for."""
    runs = [started(lab, prompt_request("x" * 40_000, priority=pb.PRIORITY_BATCH), deadline_s=600.0) for _ in range(4)]
    await eventually(lambda: lab.router.desk.waiting())
    assert not any(receipt.admitted for receipt, _ in runs)
    assert lab.router.holds.open_holds == waiting(lab) == 0
    gate = asyncio.Event()
    lab.upstream.scripts["r1"] = Script(gate=gate)
    busy("r1", 0)
    lab.clock.advance(1.0)  # type: ignore[attr-defined]  # as above
    lab.router.desk.look()
    await eventually(lambda: len(lab.upstream.calls) == 1)
    assert lab.router.holds.open_holds == 1
    assert waiting(lab) == 0
    for _, task in runs:
        task.cancel()
    await asyncio.gather(*(task for _, task in runs), return_exceptions=True)
    assert lab.received_equals_finished()


async def test_a_full_replica_is_let_in_again_while_batch_waits(
    lab: RouterLab, busy: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch that left out a full replica when it began to wait goes there once the pause is over."""
    # The room goes while it is on its way.
    monkeypatch.setattr(lab.router.desk._gate, "_free_milli_mu", lambda _: None)
    busy("r1", 0)
    lab.router.fleet.filled("r1", lab.clock.monotonic_ns() + NS_PER_S)
    receipt, task = started(lab, prompt_request(priority=pb.PRIORITY_BATCH), deadline_s=600.0)
    await eventually(lambda: waiting(lab) == 1)
    lab.clock.advance(2.0)  # type: ignore[attr-defined]  # as above
    busy("r1", 0)
    await asyncio.wait_for(task, 10.0)
    assert receipt.tries[0].choice.replica_id == "r1"


async def test_batch_that_finds_the_line_full_waits_in_its_own_queue(lab: RouterLab, busy: Reports) -> None:
    """It gives its hold back instead of being refused, and runs when there is room again."""
    lab.router.waiting._waiting_max = 1
    _, first = started(lab, prompt_request())
    await eventually(lambda: waiting(lab) == 1)
    receipt, second = started(lab, prompt_request(priority=pb.PRIORITY_BATCH))
    await eventually(lambda: lab.router.desk.waiting())
    assert not receipt.admitted
    busy("r1", 0)
    await first
    lab.clock.advance(1.0)  # type: ignore[attr-defined]  # the lab's clock is a fake one
    busy("r1", 0)
    lab.router.desk.look()
    await second
    assert receipt.outcome is Outcome.COMPLETED
    assert lab.received_equals_finished()


@pytest.mark.parametrize("policy", [LATE, admin_pb2.ROUTING_POLICY_COST, admin_pb2.ROUTING_POLICY_ROUND_ROBIN])
async def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    lab: RouterLab, busy: Reports, policy: admin_pb2.RoutingPolicy.ValueType
) -> None:
    """With a prompt that takes longer than the time left nothing is sent or charged, and the numbers are told."""
    lab.models[MODEL].routing_policy = policy
    receipt, task = started(lab, prompt_request(LONG), deadline_s=0.05)
    error = await failed(task)
    assert isinstance(error, DeadlineExceededError)
    assert error.reason is Reason.DEADLINE_TOO_SHORT
    assert float(error.metadata["expected_s"]) > 0.075
    assert float(error.metadata["left_s"]) == pytest.approx(0.05, abs=0.01)
    assert not lab.upstream.calls
    assert (receipt.outcome, receipt.settled_milli_mu) == (Outcome.REFUSED, 0)
    assert lab.received_equals_finished()
    busy("r1", 0)
    await started(lab, prompt_request(LONG), deadline_s=60.0)[1]


async def test_a_flood_of_one_tenant_has_no_others_deadline_refused(lab: RouterLab) -> None:
    """What others have waiting is overtaken at the agent, whatever it reports; the flood's own tenant is refused."""
    lab.models[MODEL].routing_policy = admin_pb2.ROUTING_POLICY_COST
    lab.policies[f"{MODEL}/{OTHER_TENANT}"] = admin_pb2.Reservation(tenant_id=OTHER_TENANT, model_id=MODEL)
    now_ns, terms = lab.clock.monotonic_ns(), LeaseTerms(6_000_000, 3_000_000, 6_000_000)
    leases = {(TENANT, MODEL): terms, (OTHER_TENANT, MODEL): terms}
    lab.router.holds.apply(leases, expires_ns=now_ns + 3600 * NS_PER_S, now_ns=now_ns)
    for replica_id in ("r1", "r2"):
        lab.upstream.scripts[replica_id] = Script(gate=asyncio.Event())
    flood = [started(lab, prompt_request(LONG)) for _ in range(40)]
    await eventually(lambda: len(lab.upstream.calls) == 40)
    error = await failed(started(lab, prompt_request(LONG), deadline_s=2.0)[1])
    assert error.reason is Reason.DEADLINE_TOO_SHORT
    reports = Reports(lab)
    for replica_id in ("r1", "r2"):
        reports(replica_id, BUSY_MILLI_MU)
    receipt, task = started(lab, prompt_request(LONG), deadline_s=2.0, key=OTHER_KEY)
    await eventually(lambda: len(lab.upstream.calls) == 41)
    assert receipt.tries[0].choice.expected_first_token_s > 20.0
    for script in lab.upstream.scripts.values():
        assert script.gate is not None
        script.gate.set()
    await asyncio.gather(task, *(each for _, each in flood))
    await started(lab, prompt_request(LONG), deadline_s=2.0)[1]
    assert lab.received_equals_finished()


async def test_a_prompt_that_lost_two_replicas_is_quarantined(lab: RouterLab) -> None:
    """It is refused before it holds anything, others are not; after a minute it may try again."""
    lab.add_replica("r3")
    for replica_id in ("r1", "r2", "r3"):
        lab.upstream.scripts[replica_id] = Script(fail_before=LOST)
    poison = prompt_request("poison")
    assert (await failed(started(lab, poison)[1])).reason is Reason.REPLICA_LOST
    assert len({call[0] for call in lab.upstream.calls}) == 2
    error = await failed(started(lab, poison)[1])
    assert isinstance(error, FailedPreconditionError)
    assert error.reason is Reason.REQUEST_QUARANTINED
    assert error.metadata["left_s"] == "60"
    assert len(lab.upstream.calls) == 2
    for replica_id in ("r1", "r2", "r3"):
        lab.upstream.scripts[replica_id] = Script()
        Reports(lab)(replica_id, 0)
    await started(lab, prompt_request("harmless"))[1]
    lab.clock.advance(61.0)  # type: ignore[attr-defined]  # as above
    lab.lease(6_000_000, 3_000_000)
    await started(lab, poison)[1]
    assert lab.router.accounts.quarantined == {MODEL: 1}
    assert lab.received_equals_finished()


async def test_bystanders_of_a_crash_are_retried_on_different_replicas(lab: RouterLab) -> None:
    """Two requests that were lost with one replica do not meet again on the next one."""
    lab.models[MODEL].routing_policy = admin_pb2.ROUTING_POLICY_COST
    gate = asyncio.Event()
    lab.upstream.scripts["r1"] = Script(gate=gate, fail_after=0, failure=LOST)
    lab.upstream.scripts["r2"] = Script(gate=asyncio.Event())
    lab.upstream.scripts["r3"] = Script(gate=asyncio.Event())
    only = sharding_pb2.Assignment(
        model_id=MODEL,
        generation=sharding_pb2.Generation(incarnation=1, number=1),
        replica_ids=["r1"],
        slices=[sharding_pb2.Slice(replicas=[0])],
    )
    lab.assignments.take(only, "test")
    runs = [started(lab, prompt_request(f"prompt {number}")) for number in range(2)]
    await eventually(lambda: len(lab.upstream.calls) == 2)
    lab.add_replica("r3")
    only.generation.number = 2
    only.replica_ids[:] = ["r1", "r2", "r3"]
    only.slices[0].replicas[:] = [0, 1, 2]
    again = sharding_pb2.Assignment()
    again.CopyFrom(only)
    lab.assignments.take(again, "test")
    gate.set()
    await eventually(lambda: len(lab.upstream.calls) == 4)
    assert {call[0] for call in lab.upstream.calls[2:]} == {"r2", "r3"}
    for _, task in runs:
        task.cancel()
    await asyncio.gather(*(task for _, task in runs), return_exceptions=True)


async def test_the_replica_is_told_key_numbers_blocks_and_the_uncached_price() -> None:
    """Dispatches count up per replica; a prompt that is cached there is priced without its cached part."""
    lab = RouterLab(["r1"], clock=FakeClock())
    member = lab.router.fleet.get("r1")
    assert member is not None
    record = engine_pb2.Replica()
    record.CopyFrom(member.record)
    record.prefix_cache = True
    lab.router.fleet.enlist(record, lab.clock.monotonic_ns())
    request = prompt_request("w" * (8 * PREFIX_BLOCK_BYTES))
    blocks = prefix_blocks(prompt_chunks(request))
    for _ in range(2):
        await started(lab, request)[1]
    first, second = (call[1] for call in lab.upstream.calls)
    assert (first.router_id, first.dispatch_number, second.dispatch_number) == ("router", 1, 2)
    assert first.shard_key == shard_key(TENANT, f"{blocks[0]:016x}")
    assert tuple(first.prefix_blocks) == blocks
    assert not first.HasField("assignment")
    assert 0 <= second.prefill_milli_mu < first.prefill_milli_mu / 10
    await started(lab, prompt_request("hi", session_id="s1"))[1]
    assert lab.upstream.calls[2][1].shard_key == shard_key(TENANT, "s1")
    assert not lab.upstream.calls[2][1].prefix_blocks
    assert lab.router.routing.counts.of(MODEL).cached_tokens > 0


async def test_no_prompt_is_hashed_where_nobody_keeps_prefixes(lab: RouterLab) -> None:
    """Without prefix caches there are no blocks, and the request's id is what its key is made of."""
    receipt, task = started(lab, prompt_request("w" * 5_000))
    await task
    sent = lab.upstream.calls[0][1]
    assert not sent.prefix_blocks
    assert sent.shard_key == shard_key(TENANT, receipt.request_id)


async def test_metrics_say_how_replicas_were_found(lab: RouterLab, busy: Reports) -> None:
    """Picks by rule, waits, refusals and the assignment in force are all there."""
    made = sharding_pb2.Assignment(
        model_id=MODEL,
        generation=sharding_pb2.Generation(incarnation=1, number=77),
        replica_ids=["r1"],
        slices=[sharding_pb2.Slice(replicas=[0])],
    )
    lab.assignments.take(made, "test")
    _, task = started(lab, prompt_request())
    await eventually(lambda: waiting(lab) == 1)
    await failed(started(lab, prompt_request(LONG), deadline_s=0.05)[1])
    collector = RoutingCollector(lab.router.routing.counts, lab.router.waiting, lab.assignments)

    def samples() -> Iterator[tuple[str, float]]:
        for family in collector.collect():
            for sample in family.samples:
                yield sample.name.removeprefix("fairlead_router_"), sample.value

    assert dict(samples())["room_waiting"] == 1
    busy("r1", 0)
    await task
    values = dict(samples())
    assert values["picks_total"] == values["room_waits_total"] == values["deadline_refusals_total"] == 1
    assert values["assignment_generation"] == 77
    assert values["assignment_age_seconds"] > 0
