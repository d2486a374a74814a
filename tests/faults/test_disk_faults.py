"""A disk runs full: a router's folder, etcd's quota, etcd's disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio
import pytest
from aetcd import rpc

from common import keys
from common.etcd_store import EtcdStore
from fairlead.errors import UnavailableError
from tests.faults import checkers
from tests.faults.disk import SmallDisk, missing_for_mounts
from tests.faults.lab import Lab
from tests.faults.load import load
from tests.faults.processes import Service
from tests.faults.tenants import GREEDY, STEADY
from tests.faults.traffic import BURST, GREEDY_RATE, both
from tests.faults.views import HEAL_S, heals, knows
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(300)

ROUTER_DISK_BYTES = 16 << 20
ETCD_QUOTA_BYTES = 8 << 20
# Two write-ahead segments of 64 MB, one in use and one in reserve, and a little for the database.
ETCD_DISK_BYTES = 144 << 20
LONG = "x" * 65_536
CHUNK = b"x" * (256 << 10)
FULL_S = 4.0


@pytest.fixture(autouse=True)
def _may_mount() -> None:
    why_not = missing_for_mounts()
    if why_not is not None and os.environ.get("CI") == "true":
        pytest.fail(f"CI must be able to fill a disk: {why_not}")
    if why_not is not None:
        pytest.skip(f"cannot fill a disk: {why_not}")


@pytest.fixture
async def small(lab: Lab) -> AsyncIterator[tuple[Service, SmallDisk]]:
    """Router-1, stopped, with a small disk for its snapshots."""
    router = lab.services["router-1"]
    router.stop()
    disk = SmallDisk(lab.folder / "router-1.state", ROUTER_DISK_BYTES)
    try:
        yield router, disk
    finally:
        router.kill()
        disk.close()


async def test_a_router_with_a_full_disk_serves_and_recovers(lab: Lab, small: tuple[Service, SmallDisk]) -> None:
    """A full state_dir costs no request and tears no snapshot; with space again, snapshots follow by themselves."""
    router, disk = small
    router.start()
    await lab.wait_settled()
    before = lab.books()
    disk.fill()
    async with load(both(lab)) as history:
        key = await lab.add_tenant("whilefull", display_name=LONG)
        await heals([router], key, within_s=HEAL_S)
        await asyncio.sleep(1.0)
        checkers.snapshots_whole(lab.folder / "router-1.state")
        disk.free()
        key = await lab.add_tenant("withspace")
        snapshot = lab.folder / "router-1.state" / "tenants.snapshot"
        await eventually(lambda: b"withspace" in snapshot.read_bytes(), HEAL_S, "the snapshot follows")
    books = await lab.since(before)
    checkers.never_refused(history.of(STEADY))
    checkers.books_agree(history, books)
    checkers.nothing_held(books)
    checkers.snapshots_whole(lab.folder / "router-1.state")
    lab.etcd.kill()
    router.kill()
    router.start()
    await eventually(lambda: knows(router, key), HEAL_S, "the router starts from its snapshot")


async def test_a_snapshot_written_in_place_is_caught(lab: Lab, small: tuple[Service, SmallDisk]) -> None:
    """A build that overwrites its snapshots tears one when the disk is full."""
    router, disk = small
    await lab.become("router-1", "torn_snapshot_router")
    disk.fill()
    await heals([router], await lab.add_tenant("whiletorn", display_name=LONG), within_s=HEAL_S)

    def torn() -> bool:
        try:
            checkers.snapshots_whole(lab.folder / "router-1.state")
        except AssertionError as found:
            return "cut off" in str(found) or "damaged" in str(found)
        return False

    await eventually(torn, HEAL_S, "a torn snapshot")


async def fill_store(lab: Lab, until: Callable[[Exception], bool]) -> None:
    """Writes until etcd takes no more for a reason that is looked for."""
    # Not the lab's patient store: a write that is refused is what is waited for.
    store = EtcdStore(lab.etcd.endpoint)
    try:
        for number in range(1_000):
            try:
                await store.put(f"{keys.PREFIX}junk/{number}", CHUNK)
            except UnavailableError as error:
                if until(error):
                    return
                # A server that is busy or gone for a moment: what is looked for comes after it.
                await asyncio.sleep(0.1)
    finally:
        await store.close()
    raise AssertionError("etcd took everything")


async def clear_store(lab: Lab) -> None:
    """What an operator does after `NOSPACE`: delete, compact, defragment, disarm the alarm."""
    async with lab.store() as store:
        for entry in (await store.list(f"{keys.PREFIX}junk/")).entries:
            await store.delete(entry.key)
        revision = (await store.list(keys.LEADERS)).revision
    async with grpc.aio.insecure_channel(lab.etcd.endpoint) as channel:
        await rpc.KVStub(channel).Compact(rpc.CompactionRequest(revision=revision, physical=True), timeout=20)
        maintenance = rpc.MaintenanceStub(channel)
        await maintenance.Defragment(rpc.DefragmentRequest(), timeout=20)
        alarms = await maintenance.Alarm(rpc.AlarmRequest(action=rpc.AlarmRequest.GET), timeout=20)
        for member in alarms.alarms:
            request = rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=member.memberID, alarm=member.alarm)
            await maintenance.Alarm(request, timeout=20)


@contextlib.asynccontextmanager
async def etcd_with(lab: Lab, *options: str) -> AsyncIterator[None]:
    """The lab with etcd started anew with further options; as it was afterwards, with its data."""
    usual = lab.etcd.command
    lab.etcd.stop()
    lab.etcd.command = [*usual, *options]
    lab.etcd.start()
    try:
        await lab.wait_well(HEAL_S)
        yield
    finally:
        lab.etcd.thaw()
        lab.etcd.kill()
        lab.etcd.command = usual


async def test_etcd_without_space_costs_no_request(lab: Lab) -> None:
    """NOSPACE: in-quota traffic goes on; once an operator has made room, everything heals without a restart."""
    async with etcd_with(lab, "--quota-backend-bytes", str(ETCD_QUOTA_BYTES)):
        before = lab.books()
        async with load(both(lab)) as history:
            await fill_store(lab, lambda error: "space exceeded" in str(error))
            await asyncio.sleep(FULL_S)
            await clear_store(lab)
            await heals(lab.routers, await lab.add_tenant("spaceagain"), within_s=HEAL_S)
            await lab.wait_well(HEAL_S)
        books = await lab.since(before)
    checkers.never_refused(history.of(STEADY))
    checkers.admitted_within(history.of(GREEDY), rate_milli_mu_per_minute=GREEDY_RATE, burst_milli_mu=BURST)
    checkers.books_agree(history, books)
    checkers.nothing_held(books)


async def test_etcd_on_a_full_disk_costs_no_request(lab: Lab, tmp_path: Path) -> None:
    """etcd ends because its disk is full: in-quota traffic goes on; started again with space, everything heals."""
    folder = tmp_path / "disk"
    lab.etcd.stop()
    disk = SmallDisk(folder, ETCD_DISK_BYTES)
    try:
        shutil.copytree(lab.etcd.data_dir, folder / "etcd")
        async with etcd_with(lab, "--data-dir", str(folder / "etcd")):
            before = lab.books()
            async with load(both(lab)) as history:
                disk.fill()
                await fill_store(lab, lambda _: not lab.etcd.running)
                await asyncio.sleep(FULL_S)
                disk.free()
                lab.etcd.start()
                await lab.wait_well(HEAL_S)
            books = await lab.since(before)
        # Back to the disk it came from, with everything written since: a store must not go back.
        lab.etcd.stop()
        shutil.rmtree(lab.etcd.data_dir)
        shutil.copytree(folder / "etcd", lab.etcd.data_dir)
    finally:
        lab.etcd.kill()
        disk.close()
    checkers.never_refused(history.of(STEADY))
    checkers.admitted_within(history.of(GREEDY), rate_milli_mu_per_minute=GREEDY_RATE, burst_milli_mu=BURST)
    checkers.books_agree(history, books)
