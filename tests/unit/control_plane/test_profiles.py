"""Profiles over the API on a store in memory: stored, put into force, taken back, proposed and accepted; events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from common import keys
from common.clock import FakeClock
from common.leadership import Election
from common.memory_store import MemoryStore
from common.mirror import Mirror
from common.store import Expect
from control_plane.config import ControlPlaneConfig
from control_plane.core.happenings import INFO, Happening
from control_plane.drift import DriftViews, DriftWatch
from control_plane.events import KEPT_MAX, KEPT_S, Events
from control_plane.metrics import ControlPlaneMetrics
from control_plane.models import Models
from control_plane.profiles import StoredProfiles
from control_plane.records import Tables
from control_plane.wiring import calibration_service
from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import ConflictError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from model_units.wire import decode_profile, profile_to_proto
from tests.support.waiting import eventually
from tests.unit.control_plane.test_check import model as a_model
from tests.unit.control_plane.test_drift_core import profile

DEFAULT = "llama-3.1-8b/h100/2"
MODEL = "tiny"


class Office:
    """The calibration service and the models on a store in memory."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.tables = Tables(self.store)
        self.metrics = ControlPlaneMetrics(CollectorRegistry())
        self.events = Events(self.store, self.clock)
        self.service = calibration_service(self.store, self.clock, cast(Any, None), self.events, self.metrics)
        self.models = Models(self.tables, self.clock, StoredProfiles(self.store))

    async def call(self, method: str, **fields: Any) -> Any:
        return await getattr(self.service, method)(getattr(pb, method + "Request")(**fields), None)

    async def stored_model(self) -> admin_pb2.Model:
        return await self.models.get(admin_pb2.GetModelRequest(model_id=MODEL))

    async def import_(self, **fields: Any) -> pb.CostProfile:
        wire = profile_to_proto(profile())
        wire.profile_id, wire.version = "", 0
        answer = await self.call("ImportProfile", profile=wire, **fields)
        assert isinstance(answer, pb.CostProfile)
        return answer

    async def kinds(self, **fields: Any) -> list[str]:
        return [event.kind for event in (await self.call("ListEvents", **fields)).events]


@pytest.fixture
async def office() -> Office:
    office = Office()
    await office.models.create(admin_pb2.CreateModelRequest(model=a_model(model_id=MODEL)))
    return office


async def test_an_imported_profile_gets_its_version_from_the_server(office: Office) -> None:
    """Proves that imports count up, are dated, are stored as they are read, and touch no model."""
    first, second = await office.import_(), await office.import_()
    assert (first.profile_id, second.profile_id) == ("m/h100/1", "m/h100/2")
    assert second.version == 2
    assert first.create_time.seconds == office.clock.wall_ns() // 10**9
    entry = await office.store.get(keys.profile("m/h100/2"))
    assert entry is not None
    assert profile_to_proto(decode_profile(entry.value)) == second
    assert await office.call("GetProfile", profile_id="m/h100/2") == second
    assert (await office.stored_model()).profile_id == ""


async def test_imports_at_once_get_different_versions(office: Office) -> None:
    """Proves that two administrators never share a version and none is lost."""
    answers = await asyncio.gather(*(office.import_() for _ in range(5)))
    assert sorted(answer.version for answer in answers) == [1, 2, 3, 4, 5]


async def test_bad_imports_are_refused_by_name(office: Office) -> None:
    """Proves that what could not be priced with, or not be stored, never gets in, and a check stores nothing."""
    for changes, named in (({"a": 0.0}, "a and b"), ({"model": "Ä/b"}, "model"), ({"hardware": "UP"}, "hardware")):
        wire = profile_to_proto(profile())
        for name, value in changes.items():
            setattr(wire, name, value)
        with pytest.raises(InvalidArgumentError, match=named):
            await office.call("ImportProfile", profile=wire)
    milliseconds = profile_to_proto(profile())
    for name in ("a", "b", "d", "g"):
        setattr(milliseconds, name, 1_000.0 * getattr(milliseconds, name))
    with pytest.raises(InvalidArgumentError, match="coefficients are in replica-seconds"):
        await office.call("ImportProfile", profile=milliseconds)
    checked = await office.import_(validate_only=True)
    assert checked.profile_id == "m/h100/1"
    assert (await office.store.list(keys.PROFILES)).entries == ()


async def test_a_value_that_cannot_be_read_hides_nothing(office: Office) -> None:
    """Proves that corrupt profiles in the store are skipped, keep their version, and never fail a call."""
    await office.store.put(keys.PROFILES + "m/h100/3", b"\xff\xff")
    await office.store.put(keys.PROFILES + "x/h100/1", profile_to_proto(profile()).SerializeToString())
    assert (await office.import_()).version == 4
    listed = await office.call("ListProfiles", model="m")
    assert [each.profile.version for each in listed.profiles] == [4]


async def test_profiles_are_listed_with_their_users(office: Office) -> None:
    """Proves order by version, filters, what ships, and which models are priced with what."""
    for _ in range(10):
        await office.import_()
    await office.call("ActivateProfile", model_id=MODEL, profile_id="m/h100/10")
    mine = (await office.call("ListProfiles", model="m")).profiles
    assert [each.profile.version for each in mine] == list(range(1, 11))
    assert mine[-1].active_for == [MODEL]
    assert not mine[0].built_in
    h100 = (await office.call("ListProfiles", hardware="h100")).profiles
    assert {each.profile.profile_id: each.built_in for each in h100}[DEFAULT]
    await office.call("RollbackProfile", model_id=MODEL)
    everything = {each.profile.profile_id: each for each in (await office.call("ListProfiles")).profiles}
    assert everything[DEFAULT].active_for == [MODEL]


async def test_activation_and_rollback(office: Office) -> None:
    """Proves what is in force after each step, that each leaves an event, and that stale etags are refused."""
    await office.import_()
    read = await office.stored_model()
    active = await office.call("ActivateProfile", model_id=MODEL, profile_id="m/h100/1", etag=read.etag)
    assert (active.profile_id, active.previous_profile_id) == ("m/h100/1", DEFAULT)
    assert active == await office.stored_model()
    with pytest.raises(ConflictError):
        await office.call("ActivateProfile", model_id=MODEL, profile_id=DEFAULT, etag=read.etag)
    with pytest.raises(ConflictError):
        await office.call("RollbackProfile", model_id=MODEL, etag=read.etag)
    tried = await office.call("RollbackProfile", model_id=MODEL, validate_only=True)
    assert tried.profile_id == DEFAULT
    assert (await office.stored_model()).profile_id == "m/h100/1"
    back = await office.call("RollbackProfile", model_id=MODEL, etag=active.etag)
    assert (back.profile_id, back.previous_profile_id) == (DEFAULT, "m/h100/1")
    assert await office.kinds() == ["PROFILE_ROLLED_BACK", "PROFILE_ACTIVATED"]
    assert await office.kinds(model_id="another") == []


async def test_a_repeated_rollback_is_done_once(office: Office) -> None:
    """Proves that a retry with its request id does not swap back."""
    await office.import_()
    await office.call("ActivateProfile", model_id=MODEL, profile_id="m/h100/1")
    for _ in range(2):
        await office.call("RollbackProfile", model_id=MODEL, request_id="once")
    assert (await office.stored_model()).profile_id == DEFAULT


async def test_what_cannot_be_put_into_force(office: Office) -> None:
    """Proves that other hardware, unknown names and a rollback to nowhere are refused and change nothing."""
    for profile_id, error in (("llama-3.1-8b/a100/1", FailedPreconditionError), ("m/h100/7", NotFoundError)):
        with pytest.raises(error):
            await office.call("ActivateProfile", model_id=MODEL, profile_id=profile_id)
    with pytest.raises(NotFoundError):
        await office.call("ActivateProfile", model_id="nobody", profile_id=DEFAULT)
    with pytest.raises(FailedPreconditionError):
        await office.call("RollbackProfile", model_id=MODEL)
    assert await office.kinds() == []


async def test_models_name_live_profiles_and_keep_the_way_back(office: Office) -> None:
    """Proves that an update may name a stored profile, that what it replaced is kept, by nobody's hand."""
    await office.import_()
    model = await office.stored_model()
    model.profile_id, model.previous_profile_id = "m/h100/1", "made/up/1"
    updated = await office.models.update(admin_pb2.UpdateModelRequest(model=model))
    assert (updated.profile_id, updated.previous_profile_id) == ("m/h100/1", DEFAULT)
    updated.display_name, updated.previous_profile_id = "new", ""
    assert (await office.models.update(admin_pb2.UpdateModelRequest(model=updated))).previous_profile_id == DEFAULT
    model.profile_id = "m/h100/9"
    with pytest.raises(InvalidArgumentError, match="m/h100/9"):
        await office.models.update(admin_pb2.UpdateModelRequest(model=model))


async def test_events_are_listed_newest_first_and_forgotten(office: Office) -> None:
    """Proves order, page size, and that the sweep takes what is too old or too many and nothing else."""
    store, events = office.store, office.events
    for number in range(5):
        await store.commit((), events.entry(Happening("KIND", INFO, MODEL, f"event {number}", {"n": str(number)})))
        office.clock.advance(3600)
    listed = (await office.call("ListEvents", page_size=2)).events
    assert [event.facts["n"] for event in listed] == ["4", "3"]
    with pytest.raises(InvalidArgumentError):
        await office.call("ListEvents", page_size=1_001)
    await store.put("/fence", b"")
    entry = await store.get("/fence")
    assert entry is not None
    fence = Expect(entry.key, create_revision=entry.create_revision)
    office.clock.advance(KEPT_S - 4 * 3600 - 1)
    await events.sweep(fence)
    assert len(await events.all()) == 4
    puts = {keys.event(f"9999999999999-{number:08d}"): b"" for number in range(KEPT_MAX)}
    await store.commit((), puts)
    await events.sweep(fence)
    assert len(await events.all()) == KEPT_MAX
    office.clock.advance(KEPT_S * 10**4)
    await events.sweep(Expect(entry.key, create_revision=entry.create_revision + 1))
    assert len(await events.all()) == KEPT_MAX


class DriftWatchLab:
    """A drift watch that leads, on a store in memory with one model and the replicas a test writes."""

    def __init__(self, office: Office) -> None:
        self.office = office
        store = office.store
        self.views = DriftViews(
            Mirror(store, keys.REPLICAS, engine_pb2.Replica.FromString),
            Mirror(store, keys.MODELS, admin_pb2.Model.FromString),
            Mirror(store, keys.PROFILES, decode_profile),
        )
        self.tasks: list[asyncio.Task[None]] = []

    def lead(self, name: str) -> None:
        """Starts a candidate; the first one leads."""
        office = self.office
        me = admin_pb2.ServiceInstance(instance_id=name)
        # The election runs on the machine's clock: the test moves the other one in strides longer than any lease.
        election = Election(MemoryStoreView(office.store), "control-plane", me)
        watch = DriftWatch(
            office.store,
            self.views,
            election,
            office.events,
            config=ControlPlaneConfig(drift_interval_s=0.1, drift_start_s=30.0),
            clock=office.clock,
            metrics=office.metrics,
        )
        loops = (election.run, watch.run)
        self.tasks += [asyncio.create_task(loop()) for loop in loops]

    async def follow(self) -> None:
        self.followers = [
            asyncio.create_task(mirror.run())
            for mirror in (self.views.replicas, self.views.models, self.views.profiles)
        ]

    async def depose(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []

    async def close(self) -> None:
        await self.depose()
        for task in self.followers:
            task.cancel()
        await asyncio.gather(*self.followers, return_exceptions=True)

    async def say(self, *ratios: float, profile_id: str = "m/h100/1") -> None:
        """What the replicas say from now on."""
        for number, ratio in enumerate(ratios):
            replica = engine_pb2.Replica(
                replica_id=f"r{number}",
                model_id=MODEL,
                state=engine_pb2.REPLICA_STATE_READY,
                drift_ratio=ratio,
                drift_profile_id=profile_id,
                drift_tokens=1_000,
            )
            await self.office.store.put(keys.replica(replica.replica_id), replica.SerializeToString())

    async def status(self) -> pb.DriftStatus:
        listed = (await self.office.call("ListDrift", model_id=MODEL)).drift
        return listed[0] if listed else pb.DriftStatus()


class MemoryStoreView:
    """The same store, whose leases no fake clock ends."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def keep_lease_alive(self, lease_id: int) -> bool:
        return True

    async def grant_lease(self, ttl_s: int) -> int:
        return await self._store.grant_lease(10**9)


@pytest.fixture
async def lab(office: Office) -> AsyncIterator[DriftWatchLab]:
    lab = DriftWatchLab(office)
    await office.import_()
    await office.call("ActivateProfile", model_id=MODEL, profile_id="m/h100/1")
    await lab.follow()
    lab.lead("first")
    try:
        yield lab
    finally:
        await lab.close()


async def drift_for_long(lab: DriftWatchLab) -> None:
    """Replicas are off, and time passes until that counts."""
    await lab.say(1.5, 1.52)

    async def seen() -> bool:
        return (await lab.status()).replicas_drifting == 2

    await eventually(seen, 10.0, "replicas seen")
    lab.office.clock.advance(31.0)

    async def drifting() -> bool:
        return (await lab.status()).HasField("drift_since")

    await eventually(drifting, 10.0, "drift")


async def test_the_watch_writes_status_events_and_metrics(lab: DriftWatchLab) -> None:
    """Proves what a drift leaves in the store and in the metrics, and that only the model's own profile is judged."""
    await lab.say(1.5, 1.5, profile_id=DEFAULT)

    async def written() -> bool:
        status = await lab.status()
        return status.profile_id == "m/h100/1" and status.replicas == 0

    await eventually(written, 10.0, "a status without replicas")
    await drift_for_long(lab)
    status = await lab.status()
    assert status.ratio == pytest.approx(1.5)
    assert status.proposal.profile_id == "m/h100/2"
    assert (await lab.office.kinds())[0] == "PROFILE_DRIFT"
    assert lab.office.metrics.profile_drifting.labels(MODEL)._value.get() == 1.0


async def test_accepting_a_proposal_is_one_step(lab: DriftWatchLab) -> None:
    """Proves that the proposal is stored under the next free version and in force, and that the watch starts anew."""
    await drift_for_long(lab)
    await lab.office.import_()
    tried = await lab.office.call("AcceptProposal", model_id=MODEL, validate_only=True)
    assert tried.profile_id == "m/h100/3"
    assert (await lab.office.stored_model()).profile_id == "m/h100/1"
    model = await lab.office.call("AcceptProposal", model_id=MODEL)
    assert (model.profile_id, model.previous_profile_id) == ("m/h100/3", "m/h100/1")
    stored = await lab.office.call("GetProfile", profile_id="m/h100/3")
    assert stored.b == pytest.approx(1.5 * profile().b)
    assert "m/h100/1 times 1.500" in stored.provenance
    assert stored.create_time.seconds == lab.office.clock.wall_ns() // 10**9

    async def anew() -> bool:
        status = await lab.status()
        return status.profile_id == "m/h100/3" and not status.HasField("drift_since")

    await eventually(anew, 10.0, "the watch follows")
    with pytest.raises(FailedPreconditionError, match="no proposal"):
        await lab.office.call("AcceptProposal", model_id=MODEL)


async def test_a_proposal_about_another_profile_is_refused(lab: DriftWatchLab) -> None:
    """Proves that what was proposed for a profile that is not in force any more is never accepted."""
    await drift_for_long(lab)
    await lab.depose()
    await lab.office.call("RollbackProfile", model_id=MODEL)
    with pytest.raises(FailedPreconditionError, match="not in force"):
        await lab.office.call("AcceptProposal", model_id=MODEL)


async def test_a_new_leader_goes_on(lab: DriftWatchLab) -> None:
    """Proves that a takeover neither repeats the event nor forgets the drift, and that the next leader ends it."""
    await drift_for_long(lab)
    since = (await lab.status()).drift_since
    await lab.depose()
    lab.lead("second")
    await lab.say(1.6, 1.6)

    async def updated() -> bool:
        return (await lab.status()).ratio == pytest.approx(1.6)

    await eventually(updated, 10.0, "the second leader's status")
    assert (await lab.status()).drift_since == since
    assert (await lab.office.kinds()).count("PROFILE_DRIFT") == 1
    await lab.say(1.0, 1.0)

    async def ended() -> bool:
        return "DRIFT_ENDED" in await lab.office.kinds()

    await eventually(ended, 10.0, "the end of the drift")
    assert not (await lab.status()).HasField("proposal")


async def test_a_deleted_model_leaves_nothing(lab: DriftWatchLab) -> None:
    """Proves that the status goes with its model."""
    await drift_for_long(lab)
    await lab.office.store.delete(keys.model(MODEL))

    async def gone() -> bool:
        return not (await lab.office.call("ListDrift")).drift

    await eventually(gone, 10.0, "no status")
