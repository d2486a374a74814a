"""A real agent process on a real etcd: the assignment it holds, and what it tells routers and the sharder."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import grpc.aio
import pytest

from common import keys
from common.shard_map import shard_key
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import Reason, from_rpc_error
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc
from tests.integration.engines.agent_process import MODEL, AgentProcess, agent, request
from tests.support.etcd import EtcdServer, PatientStore
from tests.support.waiting import eventually

RELEASE_MAX_S = 3.0


def assignment(number: int, *replicas: str) -> sharding_pb2.Assignment:
    """All keys to these replicas."""
    return sharding_pb2.Assignment(
        model_id=MODEL,
        generation=sharding_pb2.Generation(incarnation=1, number=number),
        replica_ids=sorted(replicas),
        slices=[sharding_pb2.Slice(first_key=0, replicas=range(len(replicas)))],
    )


async def exchange(replica: AgentProcess, *handed: sharding_pb2.Assignment) -> sharding_pb2.ExchangeAssignmentsResponse:
    stub: sharding_pb2_grpc.AssignmentServiceAsyncStub = sharding_pb2_grpc.AssignmentServiceStub(replica.channel)
    return await stub.ExchangeAssignments(sharding_pb2.ExchangeAssignmentsRequest(assignments=handed), timeout=5)


async def write(etcd: EtcdServer, what: sharding_pb2.Assignment) -> None:
    store = PatientStore(etcd.endpoint)
    await store.put(keys.assignment(MODEL), what.SerializeToString())
    await store.close()


Reports = grpc.aio.UnaryStreamCall[engine_pb2.WatchLoadRequest, engine_pb2.LoadReport]


async def read(stream: Reports) -> engine_pb2.LoadReport:
    """The next report of a load stream."""
    report = await asyncio.wait_for(stream.read(), 10)
    assert isinstance(report, engine_pb2.LoadReport)
    return report


async def cache_change(stream: Reports) -> engine_pb2.LoadReport:
    """The next report that tells of the cache."""
    while not (report := await read(stream)).HasField("cache"):
        pass
    return report


def gave_up(replica: AgentProcess) -> bool:
    """Whether an agent that has ended says that nobody took it out of the assignment."""
    return "the assignment still names this replica" in replica.log()


async def holds(replica: AgentProcess, number: int) -> bool:
    return (await replica.load()).assignment.number == number


async def test_it_follows_etcd_and_outlives_it(tmp_path: Path) -> None:
    """Proves that an agent takes its model's assignment from etcd and from whoever hands it a newer one, refuses a
    damaged one by name, and hands out the newest with etcd gone, serving all the while."""
    etcd = EtcdServer(tmp_path)
    etcd.start()
    try:
        async with agent(etcd.endpoint) as replica:
            assert not (await exchange(replica)).assignments
            await write(etcd, assignment(1, "somebody"))
            await eventually(lambda: holds(replica, 1))
            await asyncio.to_thread(etcd.kill)
            assert list((await exchange(replica)).assignments) == [assignment(1, "somebody")]
            assert not (await exchange(replica, assignment(2, "else"))).assignments
            damaged = assignment(3, "else")
            damaged.slices[0].replicas.append(7)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await exchange(replica, damaged)
            error = from_rpc_error(raised.value)
            assert (error.reason, error.field) == (Reason.INVALID_ARGUMENT, "assignment")
            assert "a slice names a replica that it does not list" in error.message
            assert list((await exchange(replica)).assignments) == [assignment(2, "else")]
            assert await holds(replica, 2)
            assert sum(message.output_tokens for message in await replica.generate(request())) == 5
    finally:
        await asyncio.to_thread(etcd.kill)


async def test_misrouted_requests_are_served_and_counted(shared_etcd: EtcdServer) -> None:
    """Proves that a request whose key belongs elsewhere is served like any other and counted by why it came."""
    async with agent(shared_etcd.endpoint) as replica:
        await exchange(replica, assignment(5_000, "somebody"))
        for number in (None, 4_999, 5_000, 5_001, None):
            what = request()
            what.shard_key = shard_key("tenant", "session")
            if number is not None:
                what.assignment.CopyFrom(sharding_pb2.Generation(incarnation=1, number=number))
            assert sum(message.output_tokens for message in await replica.generate(what)) == 5
        await exchange(replica, assignment(5_001, replica.replica.replica_id))
        await replica.generate(what)
        metrics = await asyncio.to_thread(replica.metrics)
        for why, count in (("no_assignment", 2), ("stale_router", 1), ("overflow", 1)):
            assert f'fairlead_agent_misrouted_requests_total{{why="{why}"}} {count}.0' in metrics


async def test_streams_tell_what_was_received_cached_and_whose_it_is(shared_etcd: EtcdServer) -> None:
    """Proves that whoever asks hears what another router's request left in the cache, whose keys brought what, and how
    far its own dispatches came; and that the record says there is a cache."""
    async with agent(shared_etcd.endpoint) as replica:
        assert replica.replica.prefix_cache
        stream = replica.stub.WatchLoad(engine_pb2.WatchLoadRequest(router_id="b", with_cache=True))
        first = await read(stream)
        assert (first.cache.whole, list(first.cache.added), first.dispatches_seen) == (True, [], 0)
        what = request("word " * 1_000)
        what.router_id, what.dispatch_number, what.shard_key = "a", 17, shard_key("tenant", "s")
        what.prefix_blocks.extend([2**64 - 1, 7, 9])
        messages = await replica.generate(what)
        assert [message.load.dispatches_seen for message in (messages[0], messages[-1])] == [17, 17]
        report = await cache_change(stream)
        assert (report.cache.whole, set(report.cache.added)) == (False, {2**64 - 1, 7, 9})
        assert report.dispatches_seen == 0
        assert 900 <= report.cached_tokens <= 1_300
        assert report.kv_capacity_tokens == replica.replica.kv_capacity_tokens
        stream.cancel()
        asking = replica.stub.WatchLoad(engine_pb2.WatchLoadRequest(with_keys=True))
        (told,) = (await read(asking)).key_loads
        asking.cancel()
        assert (told.first_key, told.tenant_id) == (what.shard_key >> 28 << 28, "tenant")
        assert (told.in_flight, told.warm_tokens) == (0, report.cached_tokens)


async def test_a_restarted_engine_has_nothing_cached(shared_etcd: EtcdServer) -> None:
    """Proves that the end of an engine empties what is known of its cache, for streams that go on too."""
    async with agent(shared_etcd.endpoint, "--stall-floor-s=1.5", "--probe-interval-s=0.5") as replica:
        what = request("word " * 1_000)
        what.prefix_blocks.extend([1, 2, 3])
        await replica.generate(what)
        stream = replica.stub.WatchLoad(engine_pb2.WatchLoadRequest(with_cache=True))
        assert set((await read(stream)).cache.added) == {1, 2, 3}
        await replica.set_faults(crash_marker="boom")
        with pytest.raises(grpc.aio.AioRpcError):
            await replica.generate(request("boom"))
        report = await cache_change(stream)
        assert report.cache == engine_pb2.CacheChange(whole=True)
        stream.cancel()


async def test_it_ends_once_the_assignment_does_not_name_it(shared_etcd: EtcdServer) -> None:
    """Proves that a replica that is told to end waits for its release, ends with it, and does not wait where there is
    nothing to wait for."""
    async with agent(shared_etcd.endpoint) as replica:
        await write(shared_etcd, assignment(10_000, replica.replica.replica_id, "other"))
        await eventually(lambda: holds(replica, 10_000))
        replica.process.send_signal(signal.SIGTERM)
        await replica.wait_state(engine_pb2.REPLICA_STATE_DRAINING)
        await write(shared_etcd, assignment(10_001, "other"))
        assert await replica.stopped() == 0
        assert not gave_up(replica)


async def test_the_wait_for_a_release_has_an_end(shared_etcd: EtcdServer) -> None:
    """Proves that a replica ends although nobody takes it out of the assignment, not before it has waited."""
    async with agent(shared_etcd.endpoint) as replica:
        await write(shared_etcd, assignment(20_000, replica.replica.replica_id))
        await eventually(lambda: holds(replica, 20_000))
        began_s = time.monotonic()
        replica.process.send_signal(signal.SIGTERM)
        assert await replica.stopped() == 0
        assert RELEASE_MAX_S <= time.monotonic() - began_s < RELEASE_MAX_S + 10.0
        assert gave_up(replica)
