from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

from common.clock import FakeClock
from common.memory_store import MemoryStore
from engines.agent.assignments import AssignmentHolder
from engines.agent.core.load import PRICE_MAX
from engines.agent.core.replica_load import Origin
from engines.agent.dispatcher import Dispatcher
from engines.agent.job import Job, Refusal
from engines.agent.notices import Notices
from engines.agent.record import ReplicaIdentity, ReplicaRecord
from engines.agent.reports import LoadReporter
from engines.agent.translate import origin
from engines.engine import EngineRequest, Prompt, Sampling
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import Reason, UnavailableError
from fairlead.sharding.v1 import sharding_pb2
from model_units.units import MilliModelUnitsPerMinute
from tests.support.waiting import eventually
from tests.unit.engines.fake_engine import FakeEngine
from tests.unit.engines.test_agent_assignments import assignment, handing

CAPACITY = MilliModelUnitsPerMinute(100_000)
PART = 0xABC << 28
PROMPT = "x" * 160
"""About forty tokens."""


class Bench:
    """A dispatcher on a fake engine, and its reports."""

    def __init__(self) -> None:
        self.engine = FakeEngine(8, 1_000, prefix_cache=True)
        clock, changed, store = FakeClock(), Notices(), MemoryStore()
        self.dispatcher = Dispatcher(
            self.engine,
            model_id="m",
            queued_max=100,
            capacity=CAPACITY,
            clock=clock,
            changed=changed,
            engine_failed=lambda: None,
        )
        identity = ReplicaIdentity("m", "h100", "fake", "", "", CAPACITY)
        self.record = ReplicaRecord(store, identity, clock=clock, changed=changed)
        self.holder = AssignmentHolder(store, model_id="m", replica_id=self.record.replica_id, changed=changed)
        self.reporter = LoadReporter(self.record, self.dispatcher, self.engine, self.holder, clock)

    async def open(self) -> Bench:
        self.dispatcher.resize(await self.engine.start())
        self.dispatcher.open()
        return self

    async def run(self, where: Origin, *, tenant: str = "a", prefill: int = 100, decode: int = 20) -> None:
        request = EngineRequest("r", Prompt(PROMPT), Sampling(2, ignore_end_token=True))
        async with aclosing(self.dispatcher.run(Job(request, tenant, prefill, decode, origin=where))) as batches:
            async for _ in batches:
                pass


async def test_a_report_is_for_the_router_it_goes_to() -> None:
    """Proves that each router reads how far its own dispatches came, refused ones included, and that one not heard of
    reads 0."""
    bench = await Bench().open()
    tasks = [
        asyncio.create_task(bench.run(Origin(router, number))) for router, number in (("a", 3), ("a", 2), ("b", 9))
    ]
    await eventually(lambda: len(bench.engine.inside) == 3)
    tasks.append(asyncio.create_task(bench.run(Origin("a", 3))))
    await eventually(lambda: len(bench.engine.inside) == 4)
    bench.dispatcher.close(Refusal("closed", Reason.NOT_READY))
    with suppress(UnavailableError):
        await bench.run(Origin("b", 10))
    seen = {router: bench.reporter.report(router).dispatches_seen for router in ("a", "b", "c", "")}
    assert seen == {"a": 3, "b": 10, "c": 0, "": 0}
    bench.engine.give(2)
    await asyncio.gather(*tasks)


async def test_a_stream_tells_the_cache_once_and_then_its_changes() -> None:
    """Proves the cache on a stream: all of it first, then only what changed, nothing where nothing did, all of it again
    after a restart of the engine; and nothing for streams and answers that did not ask."""
    bench = await Bench().open()
    asking = bench.reporter.stream(engine_pb2.WatchLoadRequest(router_id="a", with_cache=True))
    plain = bench.reporter.stream(engine_pb2.WatchLoadRequest(router_id="a"))
    assert asking.next().cache == engine_pb2.CacheChange(whole=True)
    task = asyncio.create_task(bench.run(Origin("a", 1, PART + 7, (11, 12))))
    await eventually(lambda: len(bench.engine.inside) == 1)
    assert not asking.next().HasField("cache"), "its prompt is not computed before its first token"
    bench.engine.give(2)
    await task
    report = asking.next()
    assert (set(report.cache.added), report.cache.whole, len(report.cache.dropped)) == ({11, 12}, False, 0)
    assert (report.cached_tokens, report.kv_capacity_tokens) == (40, 1_000)
    assert not asking.next().HasField("cache")
    assert not plain.next().HasField("cache")
    assert not bench.reporter.report("a").HasField("cache")
    later = bench.reporter.stream(engine_pb2.WatchLoadRequest(with_cache=True)).next()
    assert (later.cache.whole, set(later.cache.added)) == (True, {11, 12})
    await bench.open()
    report = asking.next()
    assert (report.cache, report.cached_tokens) == (engine_pb2.CacheChange(whole=True), 0)


async def test_load_by_key_is_told_to_who_asks() -> None:
    """Proves that a stream with keys says what arrived, what is in flight and what is warm, by part and tenant."""
    bench = await Bench().open()
    stream = bench.reporter.stream(engine_pb2.WatchLoadRequest(with_keys=True))
    assert not stream.next().key_loads
    task = asyncio.create_task(bench.run(Origin("a", 1, PART + 7, (11, 12))))
    await eventually(lambda: len(bench.engine.inside) == 1)
    (told,) = stream.next().key_loads
    assert (told.first_key, told.in_flight, told.warm_tokens, told.tenant_id) == (PART, 1, 0, "a")
    assert told.rate_milli_mu_per_minute > 0
    bench.engine.give(2)
    await task
    (told,) = stream.next().key_loads
    assert (told.in_flight, told.warm_tokens) == (0, 40)
    assert not bench.reporter.report("a").key_loads


async def test_a_report_says_which_assignment_is_held() -> None:
    """Proves that the generation is there from the first assignment on, and unset before."""
    bench = await Bench().open()
    assert not bench.reporter.report("a").HasField("assignment")
    bench.holder.exchange(handing(assignment(12)))
    assert bench.reporter.report("a").assignment == sharding_pb2.Generation(incarnation=1, number=12)


async def test_absurd_requests_leave_sane_reports() -> None:
    """Proves that the largest prices there are, a number of 2^64 - 1, unknown routers and ten thousand blocks are
    served, reported in bounds, and leave nothing behind."""
    bench = await Bench().open()
    wire = engine_pb2.EngineGenerateRequest(
        router_id="nobody", dispatch_number=2**64 - 1, shard_key=2**64 - 1, prefix_blocks=range(1, 10_001)
    )
    where = origin(wire)
    assert len(where.prefix_blocks) == 1_024
    tasks = [asyncio.create_task(bench.run(where, prefill=2**63 - 1, decode=2**63 - 1)) for _ in range(20)]
    await eventually(lambda: bench.dispatcher.in_flight == 20)
    stream = bench.reporter.stream(engine_pb2.WatchLoadRequest(router_id="nobody", with_cache=True, with_keys=True))
    report = stream.next()
    assert report.dispatches_seen == 2**64 - 1
    assert report.pending_prefill_milli_mu == 20 * PRICE_MAX
    assert report.queued_decode_milli_mu + report.decode_milli_mu == 20 * PRICE_MAX
    assert report.key_loads[0].in_flight == 20
    while bench.dispatcher.in_flight:
        bench.engine.give(2)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    report = stream.next()
    assert report.pending_prefill_milli_mu == report.decode_milli_mu == report.queued_decode_milli_mu == 0
    assert report.cached_tokens <= report.kv_capacity_tokens
    assert len(report.cache.added) == 1_000, "a block counts as one token at least"


async def test_a_negative_price_counts_as_nothing() -> None:
    """Proves that a price below 0 neither raises nor lowers what is reported."""
    bench = await Bench().open()
    task = asyncio.create_task(bench.run(Origin("a", 1, PART), prefill=-5, decode=-(2**63)))
    await eventually(lambda: len(bench.engine.inside) == 1)
    report = bench.reporter.stream(engine_pb2.WatchLoadRequest(with_keys=True)).next()
    assert report.pending_prefill_milli_mu == report.decode_milli_mu == 0
    assert report.key_loads[0].rate_milli_mu_per_minute == 0
    bench.engine.give(2)
    await task
