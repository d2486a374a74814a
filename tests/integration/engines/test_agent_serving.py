"""A real agent process with a simulated engine, on a real etcd: serving."""

from __future__ import annotations

import asyncio
import signal
import time

import grpc
import grpc.aio
import pytest

from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, Reason, from_rpc_error
from fairlead.inference.v1 import inference_pb2
from tests.integration.engines.agent_process import MODEL, READY, AgentProcess, agent, request
from tests.support.etcd import EtcdServer
from tests.support.otlp import collector
from tests.support.waiting import eventually

INTERACTIVE, BATCH = inference_pb2.PRIORITY_INTERACTIVE, inference_pb2.PRIORITY_BATCH


async def failure(replica: AgentProcess, what: engine_pb2.EngineGenerateRequest) -> FairleadError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await replica.generate(what)
    return from_rpc_error(raised.value)


async def idle(replica: AgentProcess) -> bool:
    load = await replica.load()
    return (load.running_requests, load.queued_requests, load.kv_used_tokens, load.pending_prefill_milli_mu) == (
        (0, 0, 0, 0)
    ) and load.decode_milli_mu == 0


async def test_registers_serves_and_leaves(shared_etcd: EtcdServer) -> None:
    """Proves the life of a replica: record, a whole stream with load and usage, metrics, and an orderly end."""
    async with agent(shared_etcd.endpoint, "--hardware=h100-tp4", "--slot=seat-3", "--rack=r1") as replica:
        record = replica.replica
        assert (record.model_id, record.hardware, record.engine, record.slot) == (
            MODEL,
            "h100-tp4",
            "simulated",
            "seat-3",
        )
        assert (record.capacity_milli_mu_per_minute, record.sequences_max, record.rack) == (100_000, 256, "r1")
        assert record.kv_capacity_tokens == 465_000
        messages = await replica.generate(request(max_tokens=6))
        assert sum(message.output_tokens for message in messages) == 6
        assert messages[0].load.replica_id == record.replica_id
        assert messages[0].load.running_requests == 1
        assert messages[-1].load.sequence > messages[0].load.sequence
        assert messages[-1].load.running_requests == 0
        assert messages[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH
        assert messages[-1].usage.output_tokens == 6
        assert messages[-1].usage.input_tokens >= 1
        assert all(not message.HasField("load") for message in messages[1:-1])
        metrics = await asyncio.to_thread(replica.metrics)
        assert 'fairlead_agent_requests_total{outcome="completed",priority="interactive"} 1.0' in metrics
        assert "fairlead_agent_output_tokens_total 6.0" in metrics
        assert 'fairlead_agent_probes_total{result="succeeded"}' in metrics
        assert await asyncio.to_thread(replica.ops_status, "/readyz") == 200
        replica.process.send_signal(signal.SIGTERM)
        assert await replica.stopped() == 0
        assert await replica.record() is None


async def test_bad_requests_are_refused_by_name(shared_etcd: EtcdServer) -> None:
    """Proves that each broken request gets its own typed answer, and that none of them leaves anything behind."""
    async with agent(shared_etcd.endpoint) as replica:
        wrong_model = await failure(replica, request(model="other"))
        assert (wrong_model.reason, wrong_model.code) == (Reason.UNKNOWN_MODEL, grpc.StatusCode.NOT_FOUND)
        no_tokens = await failure(replica, request(max_tokens=0))
        assert (no_tokens.reason, no_tokens.field) == (Reason.INVALID_ARGUMENT, "request.sampling.max_tokens")
        empty = request()
        empty.request.ClearField("prompt")
        assert (await failure(replica, empty)).field == "request.input"
        no_id = request()
        no_id.request_id = ""
        assert (await failure(replica, no_id)).field == "request_id"
        assert (await failure(replica, request("x" * 600_000))).reason is Reason.PROMPT_TOO_LONG
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await replica.stub.Drain(engine_pb2.DrainRequest(replica_id="another"))
        assert from_rpc_error(raised.value).reason is Reason.UNKNOWN_REPLICA
        watch = engine_pb2.WatchLoadRequest()
        watch.interval.FromMilliseconds(1)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await replica.stub.WatchLoad(watch).read()
        assert from_rpc_error(raised.value).field == "interval"
        assert await idle(replica)


async def test_headers_wait_for_the_first_token(shared_etcd: EtcdServer) -> None:
    """Proves that nothing is sent before the first token, so that a router can still go elsewhere."""
    async with agent(shared_etcd.endpoint) as replica:
        await replica.set_faults(hang=True)
        call = replica.stub.Generate(request())
        headers = asyncio.ensure_future(call.initial_metadata())
        done, _ = await asyncio.wait({headers}, timeout=0.3)
        assert not done
        await replica.set_faults()
        await headers
        assert sum([message.output_tokens async for message in call]) == 5


async def test_cancel_stops_the_engines_work(shared_etcd: EtcdServer) -> None:
    """Proves that cancelling, while streaming, waiting or not reading at all, frees engine and queue at once."""
    async with agent(shared_etcd.endpoint, "--sequences-max=21") as replica:
        reading = [(await replica.first(request(max_tokens=10_000))).call for _ in range(10)]
        never_read = [replica.stub.Generate(request(max_tokens=10_000)) for _ in range(10)]
        waiting = [replica.stub.Generate(request(max_tokens=10_000)) for _ in range(10)]

        async def full() -> bool:
            load = await replica.load()
            return (load.running_requests, load.queued_requests) == (20, 10)

        await eventually(full)
        began_s = time.monotonic()
        for call in (*reading, *never_read, *waiting):
            call.cancel()
        await eventually(lambda: idle(replica), what="nothing queued, running or cached")
        assert time.monotonic() - began_s < 2.0
        progress = (await replica.load()).progress_tokens
        await replica.generate(request(max_tokens=3))
        assert (await replica.load()).progress_tokens <= progress + 3 + 2  # a probe may have come between
        metrics = await asyncio.to_thread(replica.metrics)
        assert 'fairlead_agent_requests_total{outcome="cancelled",priority="interactive"} 30.0' in metrics


async def test_deadline_ends_a_request_that_waits(shared_etcd: EtcdServer) -> None:
    """Proves that a request whose deadline passes in the queue leaves it."""
    async with agent(shared_etcd.endpoint, "--sequences-max=2") as replica:
        occupant = replica.stub.Generate(request(max_tokens=10_000))
        await occupant.read()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await replica.stub.Generate(request(), timeout=0.3).read()
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        occupant.cancel()
        await eventually(lambda: idle(replica))


async def test_priorities_overtake_and_full_queues_refuse(shared_etcd: EtcdServer) -> None:
    """Proves that interactive overtakes batch in the queue, displaces it when full, and else is refused typed."""
    async with agent(shared_etcd.endpoint, "--sequences-max=2", "--queued-max=2") as replica:
        occupant = replica.stub.Generate(request(max_tokens=10_000))
        await occupant.read()
        order: list[str] = []

        async def run(name: str, priority: inference_pb2.Priority.ValueType) -> None:
            await replica.generate(request(priority=priority))
            order.append(name)

        async def queued(count: int) -> bool:
            return (await replica.load()).queued_requests == count

        batch = asyncio.create_task(run("batch", BATCH))
        await eventually(lambda: queued(1))
        interactive = asyncio.create_task(run("interactive", INTERACTIVE))
        await eventually(lambda: queued(2))
        refused = await failure(replica, request(priority=BATCH))
        assert (refused.reason, refused.code) == (Reason.QUEUE_FULL, grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert refused.retry_after_s is not None
        occupant.cancel()
        await asyncio.gather(batch, interactive)
        assert order == ["interactive", "batch"]


async def test_load_watch_reports_at_once_and_at_changes(shared_etcd: EtcdServer) -> None:
    """Proves the load stream: a report at once, growing numbers, and a drain seen long before the interval is over."""
    async with agent(shared_etcd.endpoint) as replica:
        watch = engine_pb2.WatchLoadRequest(router_id="test")
        watch.interval.FromSeconds(10)
        call = replica.stub.WatchLoad(watch)
        first = await call.read()
        assert isinstance(first, engine_pb2.LoadReport)
        assert first.state == READY
        answer = await replica.stub.Drain(engine_pb2.DrainRequest(replica_id=replica.replica.replica_id))
        assert answer.requests_in_flight == 0
        async with asyncio.timeout(5):
            second = await call.read()
        assert isinstance(second, engine_pb2.LoadReport)
        assert second.state == engine_pb2.REPLICA_STATE_DRAINING
        assert second.sequence > first.sequence
        call.cancel()


async def test_drain_finishes_what_is_in_flight(shared_etcd: EtcdServer) -> None:
    """Proves that a drained replica, and one told to stop, refuse the new and complete every stream they have."""
    async with agent(shared_etcd.endpoint) as replica:
        streams = [await replica.first(request(max_tokens=150)) for _ in range(5)]
        await replica.stub.Drain(engine_pb2.DrainRequest(replica_id=replica.replica.replica_id))
        await replica.wait_state(engine_pb2.REPLICA_STATE_DRAINING)
        refused = await failure(replica, request())
        assert refused.reason is Reason.SHUTTING_DOWN
        replica.process.send_signal(signal.SIGTERM)
        assert [stream.first.output_tokens + await stream.rest() for stream in streams] == [150] * 5
        assert await replica.stopped() == 0


async def test_span_joins_the_callers_trace(shared_etcd: EtcdServer) -> None:
    """Proves one trace: the agent's span hangs under the caller's, with times and counts and without any text."""
    trace_id, parent_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    async with collector() as otlp, agent(shared_etcd.endpoint, f"--otlp-endpoint={otlp.grpc_endpoint}") as replica:
        call = replica.stub.Generate(
            request("canary-7f3a", max_tokens=4), metadata=(("traceparent", f"00-{trace_id}-{parent_id}-01"),)
        )
        text = "".join([message.text async for message in call])
        await eventually(lambda: otlp.trace(trace_id), what="the span arrives")
        (span,) = otlp.trace(trace_id)
        assert (span.name, span.parent_id) == ("agent generate", parent_id)
        assert span.attributes["gen_ai.usage.output_tokens"] == 4
        assert span.attributes["gen_ai.request.model"] == MODEL
        assert span.attributes["fairlead.agent.queue_wait_s"] >= 0
        assert span.attributes["fairlead.agent.time_to_first_token_s"] > 0
        everything = repr(span)
        assert "canary-7f3a" not in everything
        assert text.strip() not in everything
