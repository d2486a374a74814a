"""Drift end to end: real agents with simulated engines that slow down, a real router, the control plane and etcd."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common import keys
from common.rpc import channel
from engines.simulated.hardware import hardware
from engines.simulated.rehearsal import rehearse
from fairlead.admin.v1 import admin_pb2, calibration_pb2_grpc
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.inference.v1 import inference_pb2
from model_units.calibration.load import LoadSpec
from model_units.cost import CostProfile, Evidence, cost
from model_units.latency import fit_latency_curve
from model_units.units import to_replica_seconds
from model_units.wire import profile_to_proto
from tests.integration.router.processes import AUTH, MODEL, Platform, Process, RouterProcess, platform
from tests.support.etcd import EtcdServer
from tests.support.waiting import PROCESS_START_S, eventually

pytestmark = pytest.mark.timeout(600)

HARDWARE = "h100-tp4"
TOKEN = "a-token-for-tests-only"
ADMIN = (("authorization", f"Bearer {TOKEN}"),)
INPUT_TOKENS, OUTPUT_TOKENS = 200, 64
SLOW = 1.6
SEEN_S, PRICED_S = 120.0, 30.0
"""Ten times what it takes where everybody gets to run: a replica whose registration ends meanwhile begins anew."""

_numbers = itertools.count()


def true_profile() -> CostProfile:
    """What calibrating the simulated 70B model would find, with its curve from loads in virtual time."""
    numbers = {"a": 6.192e-5, "b": 7.829e-5, "d": 5.539e-10, "g": 3.132e-8}
    profile = CostProfile(
        f"{MODEL}/{HARDWARE}/1", MODEL, HARDWARE, "simulated", 50.0, **numbers, provenance="a test", version=1
    )
    price = cost(profile, input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    work_s_per_token = to_replica_seconds(price.total_milli_mu) / OUTPUT_TOKENS
    points = []
    for concurrency in (1, 2, 3, 4, 6, 8, 12, 16):
        load = LoadSpec(((INPUT_TOKENS, OUTPUT_TOKENS),), concurrency, 20.0, 300.0)
        result = rehearse(hardware(HARDWARE), load)
        work_s = work_s_per_token * result.output_tokens
        points.append((1_000 * result.tpot_s * work_s / result.window_s, 1_000 * result.tpot_s))
    curve, spread = fit_latency_curve(points)
    # Virtual time knows nothing of a machine that wakes its engines late: the profile admits a tenth of that, and what
    # is off by twice that counts, which is a third of what this test slows engines by.
    evidence = Evidence(latency_curve=curve, latency_spread=max(spread, 0.1))
    return CostProfile(
        f"{MODEL}/{HARDWARE}/1",
        MODEL,
        HARDWARE,
        "simulated",
        50.0,
        **numbers,
        provenance="a test",
        version=1,
        evidence=evidence,
    )


def request() -> inference_pb2.GenerateRequest:
    """A request of known lengths that begins like no other, so that no prefix cache knows it."""
    prompt = f"{next(_numbers):08d}" + "words and " * (4 * INPUT_TOKENS)
    sampling = inference_pb2.SamplingParameters(max_tokens=OUTPUT_TOKENS, ignore_end_token=True)
    return inference_pb2.GenerateRequest(model=MODEL, prompt=prompt[: 4 * INPUT_TOKENS], sampling=sampling)


class Office:
    """A platform with an administrator and steady traffic.

    Args:
        world: The platform.
        control: Its control plane's process.
        router: Its router.
    """

    def __init__(self, world: Platform, control: Process, router: RouterProcess) -> None:
        self.world = world
        self.control = control
        self.router = router
        self.service: calibration_pb2_grpc.CalibrationServiceAsyncStub
        self.ops = ""
        self.earlier = 0  # events of a machine on which everything starts at once

    async def connect(self) -> None:
        """Finds the control plane."""

        async def registered() -> bool:
            for entry in (await self.world.store.list(keys.SERVICES + "control-plane/")).entries:
                instance = admin_pb2.ServiceInstance.FromString(entry.value)
                self.service = calibration_pb2_grpc.CalibrationServiceStub(channel(instance.address))
                self.ops = instance.ops_address
                return True
            return False

        await eventually(registered, PROCESS_START_S, "the control plane")

    async def price(self) -> int:
        """What one request costs now, milli-MU."""
        answer = await self.router.stub.Generate(request(), metadata=AUTH, timeout=30)
        return answer.cost.settled_milli_mu

    async def client(self) -> None:
        """Sends one request after the other."""
        while True:
            with contextlib.suppress(Exception):
                await self.router.stub.Generate(request(), metadata=AUTH, timeout=30)

    async def slow_down(self, replica: engine_pb2.Replica, factor: float) -> None:
        """Slows one engine."""
        async with channel(replica.address) as agent:
            faults = engine_pb2.Faults(slow_factor=factor)
            stub: engine_pb2_grpc.FaultServiceAsyncStub = engine_pb2_grpc.FaultServiceStub(agent)
            await stub.SetFaults(engine_pb2.SetFaultsRequest(faults=faults))

    async def status(self) -> pb.DriftStatus:
        """What the drift watch says."""
        listed = await self.service.ListDrift(pb.ListDriftRequest(model_id=MODEL), metadata=ADMIN)
        return listed.drift[0] if listed.drift else pb.DriftStatus()

    async def kinds(self) -> list[str]:
        """Kinds of the events there are but for the `earlier` ones, newest first."""
        listed = await self.service.ListEvents(pb.ListEventsRequest(model_id=MODEL), metadata=ADMIN)
        kinds = [event.kind for event in listed.events]
        return kinds[: len(kinds) - self.earlier]

    async def metric(self, address: str, name: str) -> float:
        """A metric with no other label than the model's."""

        def read() -> str:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
                return str(response.read().decode())

        wanted = (name + " ", f"{name}{{model={json.dumps(MODEL)}}} ")
        lines = (await asyncio.to_thread(read)).splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted))


@pytest.fixture
async def office(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Office]:
    """Two replicas under steady traffic, priced with a profile that is true."""
    async with platform(etcd, tmp_path) as world:
        profile = true_profile()
        entry = await world.store.get(keys.model(MODEL))
        assert entry is not None
        model = admin_pb2.Model.FromString(entry.value)
        model.engine.hardware, model.profile_id = HARDWARE, profile.profile_id
        puts = {
            keys.model(MODEL): model.SerializeToString(),
            keys.profile(profile.profile_id): profile_to_proto(profile).SerializeToString(),
            keys.profile("broken/h100/1"): b"\xff\xff no profile at all",
        }
        await world.store.commit((), puts)
        (tmp_path / "token").write_text(TOKEN)
        control = world.start(
            "control",
            "control_plane",
            *("--key-pepper-file", str(tmp_path / "pepper"), "--admin-token-file", str(tmp_path / "token")),
            *("--drift-interval-s", "0.5", "--drift-start-s", "3", "--election-ttl-s", "2"),
        )
        world.start_quota()
        for name in ("agent-1", "agent-2"):
            world.start_agent(name, "--hardware", HARDWARE, "--drift-window-s", "1", "--drift-smoothing-s", "6")
        router = world.start_router("router-1")
        await world.wait_replicas(2)
        await router.wait_ready()
        made = Office(world, control, router)
        await made.connect()
        await eventually(made.price, PROCESS_START_S, "a priced answer")
        clients = [asyncio.create_task(made.client()) for _ in range(6)]
        try:
            yield made
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def test_drift_is_seen_proposed_accepted_and_rolled_back(office: Office) -> None:
    """Proves the whole way: true, one replica slow, all slow, the proposal accepted and its price, the way back."""
    replicas = await office.world.replicas()

    async def true() -> bool:
        status = await office.status()
        near = abs(status.ratio - 1.0) < status.tolerance
        return status.replicas == 2 and near and not status.HasField("drift_since")

    await eventually(true, SEEN_S, "a ratio near 1 from both replicas")
    office.earlier = len(await office.kinds())
    before = await office.price()

    await office.slow_down(replicas[0], SLOW)

    async def slow() -> bool:
        return "REPLICA_SLOW" in await office.kinds()

    await eventually(slow, SEEN_S, "a slow replica")
    assert "PROFILE_DRIFT" not in await office.kinds()

    await office.slow_down(replicas[1], SLOW)

    async def drifting() -> bool:
        return abs((await office.status()).proposal.b / 7.829e-5 - SLOW) < 0.2

    await eventually(drifting, SEEN_S, "a proposal")
    status = await office.status()
    assert status.HasField("drift_since")
    assert (await office.kinds()).count("PROFILE_DRIFT") == 1
    assert await office.metric(office.ops, "fairlead_profile_drifting") == 1.0
    assert await office.metric(office.ops, "fairlead_profile_drift_ratio") == pytest.approx(SLOW, rel=0.2)
    assert await office.metric(replicas[0].ops_address, "fairlead_agent_profile_drift_ratio") > 1.2

    model = await office.service.AcceptProposal(pb.AcceptProposalRequest(model_id=MODEL), metadata=ADMIN)
    assert (model.profile_id, model.previous_profile_id) == (f"{MODEL}/{HARDWARE}/2", f"{MODEL}/{HARDWARE}/1")

    async def dearer() -> bool:
        return (await office.price()) == pytest.approx(before * status.ratio, rel=0.1)

    await eventually(dearer, PRICED_S, "the new profile's price")

    async def true_again() -> bool:
        now = await office.status()
        return now.profile_id == model.profile_id and now.replicas == 2 and abs(now.ratio - 1.0) < now.tolerance

    await eventually(true_again, SEEN_S, "a ratio near 1 to the new profile")

    await office.service.RollbackProfile(pb.RollbackProfileRequest(model_id=MODEL), metadata=ADMIN)

    async def as_before() -> bool:
        return await office.price() == before

    await eventually(as_before, PRICED_S, "the old price")
    kinds = await office.kinds()
    # Newest first. A window that still holds requests of before may say drift once more; the oldest one led here.
    first_drift = len(kinds) - 1 - kinds[::-1].index("PROFILE_DRIFT")
    assert kinds.index("PROFILE_ROLLED_BACK") < kinds.index("PROFILE_ACTIVATED") < first_drift
