"""Calibrations from their start to a published profile, and everything that can come in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from common import keys
from engines.simulated.engine import VERSION
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FailedPreconditionError, InvalidArgumentError
from model_units.calibration.load import LoadResult
from model_units.profiles import built_in_profiles
from tests.integration.control.calibration_lab import MODEL, Lab
from tests.integration.control.side import Side
from tests.support.etcd import EtcdServer
from tests.support.waiting import eventually

PAUSED = pb.CALIBRATION_STATE_PAUSED
PUBLISHED = pb.CALIBRATION_STATE_PUBLISHED
REFUSED = pb.CALIBRATION_STATE_REFUSED
FAILED = pb.CALIBRATION_STATE_FAILED


@pytest.fixture
async def lab(etcd: EtcdServer) -> AsyncIterator[Lab]:
    """Two replicas of a simulated model."""
    lab = Lab(etcd.endpoint)
    try:
        await lab.put_model()
        await lab.add_agents(2)
        yield lab
    finally:
        await lab.close()


async def all_ready(lab: Lab) -> bool:
    return all(replica.state == engine_pb2.REPLICA_STATE_READY for replica in await lab.replicas())


async def profiles_of(lab: Lab) -> list[str]:
    return [entry.key for entry in (await lab.store.list(f"{keys.PROFILES}{MODEL}/")).entries]


def hold_at(lab: Lab, number: int) -> asyncio.Event:
    """Keeps the measurement of that number from ever arriving; the event says that it is there."""
    there = asyncio.Event()

    async def spoil(replica_id: str, count: int, result: LoadResult) -> LoadResult:
        if count == number and not there.is_set():
            there.set()
            await asyncio.Event().wait()
        return result

    lab.spoil = spoil
    return there


async def test_a_replica_is_measured_and_its_profile_published(lab: Lab) -> None:
    """Proves the whole way: a profile with evidence in force, the old one kept, everything in one revision."""
    async with lab.leader("one"):
        began_s = time.monotonic()
        calibration = await lab.ended((await lab.start()).calibration_id)
        print(
            f"full calibration of a simulated h100: {time.monotonic() - began_s:.1f} s, "
            f"{len(calibration.experiments)} loads, {calibration.engine_s:.0f} s of engine time, "
            f"record of {calibration.ByteSize():,} bytes"
        )
    assert calibration.state == PUBLISHED, calibration.detail
    profile = calibration.profile
    assert profile.profile_id == f"{MODEL}/h100/1"
    assert profile.engine == f"simulated {VERSION}"
    assert calibration.replica_id in profile.provenance
    assert profile.evidence.hold_out_error <= 0.05
    assert profile.evidence.points > 4
    assert set(profile.evidence.intervals) == {"a", "b", "d", "g"}
    assert calibration.progress == 1.0
    assert calibration.engine_s <= 900.0
    model = await lab.model()
    assert (model.profile_id, model.previous_profile_id) == (
        profile.profile_id,
        built_in_profiles().default_for("h100").profile_id,
    )
    written = [
        await lab.store.get(key)
        for key in (keys.model(MODEL), keys.profile(profile.profile_id), keys.calibration(calibration.calibration_id))
    ]
    assert len({entry.revision for entry in written if entry is not None}) == 1, "no reader sees half a profile"
    assert [event.kind for event in await lab.events.all(MODEL)] == ["PROFILE_ACTIVATED"]
    await eventually(lambda: all_ready(lab))
    report = await lab.api.report(pb.GetCalibrationRequest(model_id=MODEL))
    assert profile.profile_id in report.html


async def test_a_pause_keeps_what_was_measured(lab: Lab) -> None:
    """Proves that a paused calibration gives its replica back at once and goes on without repeating a load."""
    there = hold_at(lab, 6)
    async with lab.leader("one"):
        calibration_id = (await lab.start(error_max=1.0)).calibration_id
        await there.wait()
        await lab.api.pause(pb.PauseCalibrationRequest(calibration_id=calibration_id))
        await eventually(lambda: all_ready(lab), 10.0, "the replica is back")
        paused = await lab.get(calibration_id)
        assert (paused.state, len(paused.experiments)) == (PAUSED, 5)
        again = await lab.start(error_max=1.0)
        assert again.calibration_id == calibration_id
        done = await lab.ended(calibration_id)
    assert done.state == PUBLISHED, done.detail
    loads = [load for _, load in lab.measured]
    assert len(set(loads)) == len(loads) == len(done.experiments), "nothing was measured twice"


async def test_another_leader_goes_on(lab: Lab) -> None:
    """Proves that a calibration survives its leader: the next one goes on from the last load that was stored."""
    there = hold_at(lab, 8)
    async with lab.leader("one"):
        calibration_id = (await lab.start(error_max=1.0)).calibration_id
        await there.wait()
        first_epoch = (await lab.get(calibration_id)).epoch
    assert len((await lab.get(calibration_id)).experiments) == 7
    async with lab.leader("two"):
        done = await lab.ended(calibration_id)
    assert done.state == PUBLISHED, done.detail
    assert done.epoch > first_epoch
    loads = [load for _, load in lab.measured]
    assert len(set(loads)) == len(loads) == len(done.experiments)


async def test_a_killed_leader_is_replaced(lab: Lab, side: Side) -> None:
    """Proves the same over SIGKILL of a real process in the middle of a load: what was stored stays as it was."""
    for name in ("cp-1", "cp-2"):
        side.start("control_plane", name)
    for name in ("cp-1", "cp-2"):
        await side.instance("control-plane", name)
    calibration_id = (await lab.start(error_max=1.0)).calibration_id
    async for seen in lab.api.watch(pb.GetCalibrationRequest(calibration_id=calibration_id)):
        if len(seen.experiments) >= 5:
            await lab.set_faults(seen.replica_id, hang=True)
            break
    await eventually(lambda: nothing_moves(lab, calibration_id), 20.0, "the load that hangs")
    before = await lab.get(calibration_id)
    (await side.leader_process("control-plane")).kill()
    await eventually(lambda: taken_over(lab, calibration_id, before.epoch), 30.0, "the standby goes on")
    await lab.set_faults(before.replica_id)
    done = await lab.ended(calibration_id)
    assert done.state == PUBLISHED, done.detail
    assert list(done.experiments[: len(before.experiments)]) == list(before.experiments)
    loads = {each.load.SerializeToString() for each in done.experiments}
    assert len(loads) == len(done.experiments)


async def nothing_moves(lab: Lab, calibration_id: str) -> bool:
    first = await lab.get(calibration_id)
    await asyncio.sleep(0.5)
    assert first.state == pb.CALIBRATION_STATE_RUNNING
    return (await lab.get(calibration_id)).etag == first.etag


async def taken_over(lab: Lab, calibration_id: str, epoch: int) -> bool:
    return (await lab.get(calibration_id)).epoch > epoch


async def test_an_engine_that_fails_half_way_is_left(lab: Lab) -> None:
    """Proves that another replica of the same hardware goes on when the first one's engine fails."""

    async def spoil(replica_id: str, count: int, result: LoadResult) -> LoadResult:
        if count == 5:
            await lab.set_faults(replica_id, out_of_memory=True)
        return result

    lab.spoil = spoil
    await lab.add_agents(1)
    async with lab.leader("one"):
        done = await lab.ended((await lab.start(error_max=1.0)).calibration_id)
    assert done.state == PUBLISHED, done.detail
    replicas = [replica_id for replica_id, _ in lab.measured]
    assert len(set(replicas)) == 2
    assert done.replica_id == replicas[-1] != replicas[0]
    loads = [load for _, load in lab.measured]
    assert len(set(loads)) == len(loads)


async def test_a_second_failure_pauses(lab: Lab) -> None:
    """Proves that a calibration that finds no sound replica stops with the reason and publishes nothing."""

    async def spoil(replica_id: str, count: int, result: LoadResult) -> LoadResult:
        if count == 5:
            for replica in await lab.replicas():
                await lab.set_faults(replica.replica_id, out_of_memory=True)
        return result

    lab.spoil = spoil
    await lab.add_agents(1)
    async with lab.leader("one"):
        done = await lab.ended((await lab.start(error_max=1.0)).calibration_id)
    assert done.state == PAUSED
    assert "out of memory" in done.detail
    assert await profiles_of(lab) == []
    assert (await lab.model()).profile_id == ""


async def test_an_agent_that_dies_leaves_the_rest_to_another(lab: Lab) -> None:
    """Proves that a replica that vanishes while it is measured is replaced by another."""
    await lab.add_agents(1)

    async def spoil(replica_id: str, count: int, result: LoadResult) -> LoadResult:
        if count == 4:
            await (await lab.agent_of(replica_id)).die()
        return result

    lab.spoil = spoil
    async with lab.leader("one"):
        done = await lab.ended((await lab.start(error_max=1.0)).calibration_id)
    assert done.state == PUBLISHED, done.detail
    assert len({replica_id for replica_id, _ in lab.measured}) == 2


async def test_an_engine_that_slows_half_way_makes_no_silent_profile(lab: Lab) -> None:
    """Proves that measurements that contradict each other are refused, or fitted as well as the profile says."""

    async def spoil(replica_id: str, count: int, result: LoadResult) -> LoadResult:
        if count == 12:
            await lab.set_faults(replica_id, slow_factor=2.0)
        return result

    lab.spoil = spoil
    async with lab.leader("one"):
        done = await lab.ended((await lab.start()).calibration_id)
    assert done.state == REFUSED, done.detail
    assert "changed its speed" in done.detail
    assert done.HasField("profile")
    assert await profiles_of(lab) == []
    assert [event.kind for event in await lab.events.all(MODEL)] == ["CALIBRATION_REFUSED"]
    published = await lab.api.publish(pb.PublishCalibrationRequest(calibration_id=done.calibration_id))
    assert published.state == PUBLISHED
    assert (await lab.model()).profile_id == published.profile.profile_id == f"{MODEL}/h100/1"


async def test_nonsense_is_not_fitted(lab: Lab) -> None:
    """Proves that a measurement that cannot be true ends the calibration and is not stored."""

    async def spoil(replica_id: str, count: int, result: LoadResult) -> LoadResult:
        if count == 3:
            raise InvalidArgumentError("measurement.window_s is 0: nothing was measured", field="measurement.window_s")
        return result

    lab.spoil = spoil
    async with lab.leader("one"):
        done = await lab.ended((await lab.start(error_max=1.0)).calibration_id)
    assert done.state == FAILED
    assert "window_s is 0" in done.detail
    assert len(done.experiments) == 2
    assert await profiles_of(lab) == []
    await eventually(lambda: all_ready(lab))


async def test_one_calibration_of_a_model_at_a_time(lab: Lab) -> None:
    """Proves that of two starts at once one wins, and that the other is told which one runs."""
    answers = await asyncio.gather(lab.start(), lab.start(), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    started = [answer for answer in answers if isinstance(answer, pb.Calibration)]
    assert len(started) == len(refused) == 1
    assert isinstance(refused[0], FailedPreconditionError)
    assert started[0].calibration_id in refused[0].message


async def test_the_last_replica_is_left_to_tenants(lab: Lab) -> None:
    """Proves that the only READY replica is refused, checked or not, and taken when that is asked for."""
    victim = lab.agents.pop()
    await victim.close()
    await eventually(lambda: one_left(lab))
    with pytest.raises(FailedPreconditionError, match="take_last_replica"):
        await lab.start()
    async with lab.leader("one"):
        taken = await lab.start(take_last_replica=True, keep_active=True, error_max=1.0)
        done = await lab.ended(taken.calibration_id)
    assert done.state == PUBLISHED, done.detail
    assert await profiles_of(lab) == [keys.profile(done.profile.profile_id)]
    assert (await lab.model()).profile_id == "", "what is in force stays"


async def test_a_fresh_start_gives_up_the_paused_one(lab: Lab) -> None:
    """Proves that another objective or a fresh start measures anew, and that the paused one is ended."""
    there = hold_at(lab, 3)
    async with lab.leader("one"):
        first = (await lab.start(error_max=1.0)).calibration_id
        await there.wait()
        await lab.api.pause(pb.PauseCalibrationRequest(calibration_id=first))
    checked = await lab.api.start(pb.StartCalibrationRequest(model_id=MODEL, validate_only=True))
    assert (checked.calibration_id, len(checked.experiments)) == (first, 2)
    second = await lab.start(fresh=True)
    assert second.calibration_id != first
    assert (await lab.get(first)).state == FAILED
    assert second.calibration_id in (await lab.get(first)).detail
    newest = await lab.api.get(pb.GetCalibrationRequest(model_id=MODEL))
    assert newest.calibration_id == second.calibration_id
    listed = (await lab.api.list(pb.ListCalibrationsRequest(model_id=MODEL))).calibrations
    assert [each.calibration_id for each in listed] == [second.calibration_id, first]
    assert not any(each.experiments for each in listed)


async def one_left(lab: Lab) -> bool:
    return len(await lab.replicas()) == 1
