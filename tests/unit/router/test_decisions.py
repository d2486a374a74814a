"""What a router remembers of its decisions, and whom it tells."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import FakeClock
from common.platform_token import platform_token
from data_plane.router.config import RouterConfig
from data_plane.router.core.decisions import FOUND_MAX, SAME_ID_MAX, DecisionLog
from data_plane.router.exchange import Call, Receipt
from fairlead.errors import (
    FairleadError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnauthenticatedError,
    UnavailableError,
)
from fairlead.inference.v1 import decision_pb2 as pb
from fairlead.inference.v1 import inference_pb2
from tests.support.router_lab import KEY, MODEL, OTHER_KEY, PEPPER, TENANT, RouterLab, Script, prompt_request
from tests.support.waiting import eventually

PLATFORM = f"Platform {platform_token(PEPPER)}"
LOST = UnavailableError("gone", reason=Reason.REPLICA_LOST)


@dataclass
class Record:
    request_id: str
    tenant_id: str


asked = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "t", "u", "v"])), max_size=80)


class NaiveShare:
    """Over the bound the oldest record of whoever has most goes; of several, of whoever has had so many longest."""

    def __init__(self, kept_max: int) -> None:
        self.kept_max = kept_max
        self.records: list[Record] = []
        self.since: dict[str, int] = {}
        self.step = 0

    def _count(self, tenant_id: str) -> int:
        return sum(each.tenant_id == tenant_id for each in self.records)

    def add(self, record: Record) -> None:
        if self.kept_max == 0:
            return
        self.step += 1
        self.records.append(record)
        owner = record.tenant_id
        if len(self.records) <= self.kept_max:
            self.since[owner] = self.step
            return
        most = max(self._count(each.tenant_id) for each in self.records)
        largest = {each.tenant_id for each in self.records if self._count(each.tenant_id) == most}
        alone = largest == {owner}
        self.since[owner] = self.since.get(owner, 0) if alone else self.step
        loser = min(largest, key=lambda each: self.since[each])
        self.records.remove(next(each for each in self.records if each.tenant_id == loser))
        if loser != owner:
            self.step += 1
            self.since[loser] = self.step


@given(history=asked, kept_max=st.integers(0, 12))
def test_the_log_finds_exactly_what_the_rule_keeps(history: list[tuple[str, str]], kept_max: int) -> None:
    """Against plain lists: every id, per tenant and for all, newest first, never more than it may keep."""
    log: DecisionLog[Record] = DecisionLog(kept_max)
    tenants, strangers = NaiveShare(kept_max), NaiveShare(-(-kept_max // 10))
    for each in history:
        record = Record(*each)
        log.remember(record)
        (tenants if record.tenant_id else strangers).add(record)
    known, unknown = tenants.records[::-1], strangers.records[::-1]
    assert len(log) == len(known) + len(unknown)
    for request_id in "abcd":
        for tenant_id in ("t", "u", "v", "w"):
            expected = [e for e in known if (e.request_id, e.tenant_id) == (request_id, tenant_id)]
            assert [*map(id, log.find(request_id, tenant_id))] == [*map(id, expected)]
        expected = [e for e in (*known, *unknown) if e.request_id == request_id]
        assert [*map(id, log.find(request_id, None))] == [*map(id, expected)]


@given(
    quiet=st.lists(st.integers(1, 30), max_size=5),
    flood=st.integers(0, 400),
    kept_max=st.integers(1, 100),
)
def test_every_tenant_keeps_its_share_of_the_newest(quiet: list[int], flood: int, kept_max: int) -> None:
    """However many requests one tenant sends, each of n tenants can still ask for its newest kept_max / n."""
    log: DecisionLog[Record] = DecisionLog(kept_max)
    for tenant, count in enumerate(quiet):
        for number in range(count):
            log.remember(Record(f"q{number}", f"quiet{tenant}"))
    for number in range(flood):
        log.remember(Record(f"f{number}", "loud"))
    share = kept_max // (len(quiet) + 1)
    for tenant, count in enumerate(quiet):
        for number in range(max(0, count - share), count):
            assert log.find(f"q{number}", f"quiet{tenant}")
    for number in range(max(0, flood - share), flood):
        assert log.find(f"f{number}", "loud")
    assert len(log) == min(kept_max, sum(quiet) + flood)


def test_a_flood_of_one_id_is_bounded() -> None:
    """One tenant's many requests under one id push out nothing, and an answer has at most FOUND_MAX decisions."""
    log: DecisionLog[Record] = DecisionLog(1000)
    log.remember(Record("x", "quiet"))
    log.remember(Record("mine", "loud"))
    for _ in range(2000):
        log.remember(Record("x", "loud"))
    assert len(log.find("x", "loud")) == SAME_ID_MAX
    assert len(log.find("mine", "loud")) == len(log.find("x", "quiet")) == 1
    assert len(log) == SAME_ID_MAX + 2
    for tenant in range(200):
        log.remember(Record("x", f"t{tenant}"))
    everybody = log.find("x", None)
    assert [each.tenant_id for each in everybody] == [f"t{n}" for n in range(199, 199 - FOUND_MAX, -1)]


def explain(lab: RouterLab, request_id: str, authorization: str | None = PLATFORM) -> pb.Decision:
    found = lab.router.decisions.find(pb.GetDecisionRequest(request_id=request_id), authorization)
    return found.decisions[0]


async def outcome(lab: RouterLab, request: inference_pb2.GenerateRequest, key: str | None = KEY) -> str:
    """Runs a request to its end; returns its id."""
    exchange = lab.router.flow.open(Call(request, f"Bearer {key}" if key else None))
    named = exchange.receipt.request_id
    try:
        async with aclosing(exchange.events()) as events:
            async for _ in events:
                pass
    except FairleadError as error:
        named = error.metadata["request_id"]
    assert named == exchange.receipt.request_id
    return exchange.receipt.request_id


async def test_a_completed_request_is_explained_with_all_its_numbers() -> None:
    """Estimate, hold, bucket before the hold, candidates, first token and charge, each where it belongs."""
    clock = FakeClock()
    lab = RouterLab(["r1", "r2"], clock=clock, rate=60_000, burst=30_000)
    lab.router.fleet.get("r2").load.dispatch(10**6, 0, clock.monotonic_ns())  # type: ignore[union-attr]
    name = await outcome(lab, prompt_request(session_id="s", priority=inference_pb2.PRIORITY_BATCH))
    decision = explain(lab, name)
    assert (decision.request_id, decision.tenant_id, decision.model_id) == (name, TENANT, MODEL)
    assert (decision.outcome, decision.reason, decision.message) == (pb.OUTCOME_COMPLETED, "", "")
    assert (decision.priority, decision.session_id) == (inference_pb2.PRIORITY_BATCH, "s")
    assert decision.profile_id
    estimated = decision.estimated_prefill_milli_mu + decision.estimated_decode_milli_mu
    assert decision.held_milli_mu == estimated > 0
    assert decision.estimated_usage.output_tokens > 0
    assert (decision.bucket.level_milli_mu, decision.bucket.held_milli_mu, decision.bucket.open_holds) == (30_000, 0, 0)
    assert (decision.bucket.rate_milli_mu_per_minute, decision.bucket.burst_milli_mu) == (60_000, 30_000)
    assert not decision.bucket.expired
    (attempt,) = decision.attempts
    assert [each.replica_id for each in attempt.candidates] == ["r1", "r2"]
    assert attempt.candidates[0].score < attempt.candidates[1].score
    assert attempt.candidates[1].pending_prefill_milli_mu == 10**6
    assert (attempt.replica_id, attempt.candidate_count, attempt.failure_reason) == ("r1", 2, "")
    assert attempt.HasField("first_token_offset")
    assert (decision.settled_usage.input_tokens, decision.settled_usage.output_tokens) == (7, 3)
    charged = decision.settled_prefill_milli_mu + decision.settled_decode_milli_mu
    assert charged == lab.router.holds.settled_milli_mu > 0
    assert decision.arrive_time.ToNanoseconds() == clock.wall_ns()


async def test_refused_failed_and_cancelled_requests_are_explained() -> None:
    """The reason, what the client was told, when to come back, and the tries that failed."""
    lab = RouterLab(["r1", "r2"], clock=FakeClock(), rate=60, burst=1)
    decision = explain(lab, await outcome(lab, prompt_request()))
    assert (decision.outcome, decision.reason) == (pb.OUTCOME_REFUSED, "QUOTA_TOO_SMALL")
    assert "ask for more" in decision.message
    assert (decision.bucket.level_milli_mu, decision.held_milli_mu) == (1, 0)
    lab = RouterLab(["r1", "r2"], rate=10**6, burst=10**6)
    lab.upstream.scripts = {"r1": Script(fail_before=LOST), "r2": Script(fail_before=LOST)}
    decision = explain(lab, await outcome(lab, prompt_request()))
    assert (decision.outcome, decision.reason) == (pb.OUTCOME_FAILED, "REPLICA_LOST")
    assert [each.failure_reason for each in decision.attempts] == ["REPLICA_LOST"] * 2
    assert decision.retry_delay.ToNanoseconds() > 0
    lab = RouterLab(["r1"])
    lab.upstream.scripts["r1"] = Script(gate=asyncio.Event())
    task = asyncio.create_task(outcome(lab, prompt_request(request_id="gone")))
    await eventually(lambda: lab.upstream.running == 1)
    decision = explain(lab, "gone")
    assert (decision.outcome, decision.HasField("duration")) == (pb.OUTCOME_UNSPECIFIED, False)
    for number in range(20_000):
        lab.router.flow.books.decisions.remember(Receipt(f"n{number}", tenant_id="noisy"))
    assert explain(lab, "gone", f"Bearer {KEY}").outcome == pb.OUTCOME_UNSPECIFIED
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    decision = explain(lab, "gone")
    assert (decision.outcome, decision.reason) == (pb.OUTCOME_CANCELLED, "CANCELLED")
    assert decision.attempts[0].failure_reason == "CANCELLED"


async def test_a_batch_request_that_waited_says_how_long() -> None:
    """What waited for quota in vain shows the wait and the bucket it waited for."""
    lab = RouterLab(["r1"], rate=1, burst=10**6)
    held = lab.router.holds.hold((TENANT, MODEL), 10**6, lab.clock.monotonic_ns())
    assert held
    deadline_ns = lab.clock.monotonic_ns() + 50_000_000
    request = prompt_request(priority=inference_pb2.PRIORITY_BATCH)
    exchange = lab.router.flow.open(Call(request, f"Bearer {KEY}", deadline_ns))
    with pytest.raises(FairleadError):
        async with aclosing(exchange.events()) as events:
            async for _ in events:
                pass
    decision = explain(lab, exchange.receipt.request_id)
    assert decision.outcome == pb.OUTCOME_REFUSED
    assert decision.HasField("wait")
    assert (decision.bucket.held_milli_mu, decision.bucket.open_holds) == (10**6, 1)


async def test_a_repeated_request_says_that_it_was_a_repetition() -> None:
    """Both are found under the one id, the repetition first, and it was charged nothing."""
    lab = RouterLab()
    for _ in range(2):
        await outcome(lab, prompt_request(request_id="twice"))
    found = lab.router.decisions.find(pb.GetDecisionRequest(request_id="twice"), f"Bearer {KEY}").decisions
    assert [each.replayed for each in found] == [True, False]
    assert [each.HasField("settled_usage") for each in found] == [False, True]


async def test_only_the_own_tenant_and_the_platform_may_ask() -> None:
    """Another tenant's id looks like one that never was; a request without a key is the platform's business only."""
    lab = RouterLab()
    name = await outcome(lab, prompt_request())
    assert explain(lab, name, f"Bearer {KEY}").tenant_id == TENANT
    told = []
    for request_id, key in ((name, OTHER_KEY), ("never", OTHER_KEY)):
        with pytest.raises(NotFoundError) as caught:
            explain(lab, request_id, f"Bearer {key}")
        told.append(caught.value.message.replace(request_id, "ID"))
    assert told[0] == told[1]
    for authorization in (None, "Bearer fl-x-y", "Platform", "Platform " + "0" * 64, f"Bearer {PLATFORM[9:]}"):
        with pytest.raises(UnauthenticatedError):
            explain(lab, name, authorization)
    with pytest.raises(InvalidArgumentError):
        explain(lab, "", f"Bearer {KEY}")
    stranger = await outcome(lab, prompt_request(request_id="stranger"), key=None)
    assert explain(lab, stranger).reason == "MISSING_KEY"
    with pytest.raises(NotFoundError):
        explain(lab, stranger, f"Bearer {KEY}")
    of_other = pb.GetDecisionRequest(request_id=name, tenant_id="globex")
    with pytest.raises(NotFoundError):
        lab.router.decisions.find(of_other, PLATFORM)
    assert lab.router.decisions.find(of_other, f"Bearer {KEY}").decisions


async def test_an_id_that_is_none_is_replaced() -> None:
    """A request refused for its id can be asked for under one the router drew; the bad one is kept nowhere."""
    lab = RouterLab()
    for bad in ("x" * 129, "with space", "ä"):
        name = await outcome(lab, prompt_request(request_id=bad))
        assert name != bad
        assert explain(lab, name, f"Bearer {KEY}").reason == "INVALID_ARGUMENT"
        with pytest.raises(NotFoundError):
            explain(lab, bad)


async def test_decisions_hold_no_prompt_no_output_and_no_key() -> None:
    """Canaries in all three places show up in nothing that is kept, whatever became of the requests."""
    canary = "canary-7f3a"
    lab = RouterLab(["r1", "r2"], rate=10**6, burst=10**6)
    lab.upstream.scripts = {name: Script(pieces=(canary,) * 3) for name in ("r1", "r2")}
    requests = [
        prompt_request(canary),
        prompt_request(canary, request_id="named"),
        prompt_request(canary, sampling=inference_pb2.SamplingParameters(temperature=9, stop=[canary])),
        prompt_request(canary, sampling=inference_pb2.SamplingParameters(temperature=0)),
        prompt_request(canary, session_id=canary * 100),
    ]
    names = [await outcome(lab, request) for request in requests]
    names.append(await outcome(lab, prompt_request("x"), key=f"fl-{canary}-{canary}"))
    lab.upstream.scripts = {name: Script(pieces=(canary,) * 3, fail_after=1, failure=LOST) for name in ("r1", "r2")}
    names.append(await outcome(lab, prompt_request(canary)))
    for name in names:
        decision = explain(lab, name)
        assert canary not in str(decision)
        (receipt,) = lab.router.flow.books.decisions.find(name, None)
        assert canary not in repr(receipt)
    assert {explain(lab, name).outcome for name in names} == {
        pb.OUTCOME_COMPLETED,
        pb.OUTCOME_FAILED,
        pb.OUTCOME_REFUSED,
    }


async def test_nothing_is_kept_where_nothing_is_wanted() -> None:
    """With decisions_kept_max = 0 requests run as ever and nobody remembers them."""
    lab = RouterLab(config=RouterConfig(decisions_kept_max=0))
    name = await outcome(lab, prompt_request())
    assert len(lab.router.flow.books.decisions) == 0
    with pytest.raises(NotFoundError):
        explain(lab, name)
