"""What a router settled and decided, over real processes and a real etcd: nothing is lost to a SIGKILL."""

from __future__ import annotations

import signal
from pathlib import Path

import aiohttp
import grpc.aio
import pytest

from common import keys
from common.platform_token import platform_token
from fairlead.admin.v1 import usage_pb2
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc
from tests.integration.router.processes import AUTH, Platform, platform
from tests.integration.router.traffic import generated, request
from tests.support.etcd import EtcdServer
from tests.support.router_lab import KEY, PEPPER
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(90)


async def charged(world: Platform) -> tuple[int, int]:
    """Requests and milli-MU in the store."""
    requests = milli_mu = 0
    for entry in (await world.store.list(keys.USAGE)).entries:
        for row in usage_pb2.UsageTable.FromString(entry.value).rows:
            requests += row.requests
            milli_mu += row.prefill_milli_mu + row.decode_milli_mu
    return requests, milli_mu


async def test_usage_survives_a_kill_and_decisions_are_told(etcd: EtcdServer, tmp_path: Path) -> None:
    """Two lives of one router, the first ended by SIGKILL, the second by SIGTERM: the store holds every charge once.

    On the way both front doors explain a request to its tenant, and the gRPC one to the platform.
    """
    async with platform(etcd, tmp_path) as world:
        world.start_quota()
        world.start_agent("agent-1")
        await world.wait_replicas(1)
        settled, requests = 0.0, 0
        for end in (signal.SIGKILL, signal.SIGTERM):
            router = world.start_router("router-1")
            await router.wait_ready()
            await eventually(lambda: generated(router), 15.0, "the first answer")  # noqa: B023  # awaited in the loop
            last = [await router.stub.Generate(request(tokens=9), metadata=AUTH, timeout=10) for _ in range(20)][-1]
            settled += await router.metric("fairlead_router_settled_milli_mu_total")
            requests += int(await router.metric("fairlead_router_requests_finished_total", outcome="completed"))

            stub: decision_pb2_grpc.DecisionServiceAsyncStub = decision_pb2_grpc.DecisionServiceStub(router.channel)
            wanted = decision_pb2.GetDecisionRequest(request_id=last.request_id)
            for metadata in (AUTH, (("authorization", f"Platform {platform_token(PEPPER)}"),)):
                (decision,) = (await stub.GetDecision(wanted, metadata=metadata)).decisions
                assert decision.outcome == decision_pb2.OUTCOME_COMPLETED
                charge = decision.settled_prefill_milli_mu + decision.settled_decode_milli_mu
                assert charge == last.cost.settled_milli_mu
                assert decision.bucket.quota_milli_mu_per_minute >= decision.bucket.rate_milli_mu_per_minute > 0
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetDecision(wanted)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
                async with http.get(f"{router.http_url}/v1/requests/{last.request_id}/decision") as answer:
                    (told,) = (await answer.json())["decisions"]
                    assert told["settled_decode_milli_mu"] == str(last.cost.decode_milli_mu)
                async with http.get(f"{router.http_url}/v1/requests/never/decision") as answer:
                    assert answer.status == 404
            await router.channel.close()
            router.signal(end)
            await router.stopped()
        assert await charged(world) == (requests, int(settled))
        left = tmp_path / "router-1.state" / "usage"
        assert not list(left.iterdir())
