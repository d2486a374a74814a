"""Leaders die, freeze and lose their store; standbys and restarts go on."""

from __future__ import annotations

import signal
import time

import pytest

from common import keys
from common.etcd_store import EtcdStore
from common.leadership import Election
from common.store import Change, Expect
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.quota.v1 import quota_pb2
from fairlead.sharding.v1 import sharding_pb2
from tests.integration.control.side import MODEL, Router, Side
from tests.support.waiting import eventually

WANTS = {"a": 60_000}


async def start_two_of_each(side: Side, **flags: int) -> Router:
    """Allocators and limiters with standbys, one tenant, one router that holds a lease."""
    await side.put_model()
    await side.put_replica("r1")
    await side.put_reservation("a", 80_000)
    for package, short in (("capacity", "cap"), ("ratelimiter", "lim")):
        for number in (1, 2):
            side.start(package, f"{short}-{number}", **flags)
    router = Router(side, "router-1")
    await eventually(lambda: holds(router, 80_000), 40.0, "a lease")
    for service, short in (("capacity", "cap"), ("ratelimiter", "lim")):
        for number in (1, 2):
            await side.instance(service, f"{short}-{number}")
    return router


async def holds(router: Router, rate: int) -> bool:
    return await router.report(WANTS) and router.rate("a") == rate


async def test_killed_leaders_are_replaced(side: Side) -> None:
    """Proves takeover of limiter and allocator after SIGKILL: the same lease under a new epoch, quotas that follow."""
    router = await start_two_of_each(side, election_ttl_s=5)
    limiter, epoch = await side.leader_process("ratelimiter"), router.epoch
    limiter.kill()
    killed_s = time.monotonic()

    async def granted_anew() -> bool:
        return await router.report(WANTS) and router.epoch > epoch

    await eventually(granted_anew, 20.0, "the standby grants")
    print(f"limiter takeover: {time.monotonic() - killed_s:.1f} s from SIGKILL to the first lease of the standby")
    assert router.rate("a") == 80_000, "the takeover moved nothing"
    assert time.monotonic() - killed_s < 15.0

    allocator = await side.leader_process("capacity")
    allocator.kill()
    killed_s = time.monotonic()
    await side.put_reservation("a", 40_000)
    await eventually(lambda: holds(router, 40_000), 20.0, "the standby allocates")
    print(f"allocator takeover: {time.monotonic() - killed_s:.1f} s from SIGKILL to a changed reservation in force")


async def test_a_killed_sharder_is_replaced_within_ten_seconds(side: Side) -> None:
    """Proves the bar of failover with the settings as they come: SIGKILL of the leader, and a change of the fleet is in
    an assignment of the standby within 10 s, in the same line of generations."""
    await side.put_model()
    for number in range(4):
        await side.put_replica(f"r{number}")
    for name in ("cp-1", "cp-2"):
        side.start("control_plane", name, election_ttl_s=5)
    for name in ("cp-1", "cp-2"):
        await side.instance("control-plane", name)

    async def assignment() -> sharding_pb2.Assignment:
        entry = await side.store.get(keys.assignment(MODEL))
        return sharding_pb2.Assignment.FromString(entry.value) if entry is not None else sharding_pb2.Assignment()

    async def named(replica_id: str) -> bool:
        found = await assignment()
        return bool(found.slices) and replica_id in found.replica_ids

    await eventually(lambda: named("r1"), 30.0)
    before = await assignment()
    (await side.leader_process("control-plane")).signal(signal.SIGKILL)
    killed_s = time.monotonic()
    await side.store.delete(keys.replica("r1"))

    async def moved() -> bool:
        return not await named("r1")

    await eventually(moved, 20.0)
    took_s = time.monotonic() - killed_s
    print(f"sharder takeover: {took_s:.1f} s from SIGKILL to the standby's assignment")
    after = await assignment()
    assert after.generation.incarnation == before.generation.incarnation
    assert after.generation.number > before.generation.number
    assert took_s < 10.0


async def test_stopped_leader_hands_over_at_once(side: Side) -> None:
    """Proves a graceful end: after SIGTERM the standby leads without waiting for the lease to run out."""
    router = await start_two_of_each(side, election_ttl_s=30)
    limiter, epoch = await side.leader_process("ratelimiter"), router.epoch
    limiter.signal(signal.SIGTERM)
    stopped_s = time.monotonic()

    async def granted_anew() -> bool:
        return await router.report(WANTS) and router.epoch > epoch

    await eventually(granted_anew, 20.0, "the standby grants")
    assert time.monotonic() - stopped_s < 15.0, "half the lease"
    assert await limiter.ended() == 0


def epochs_that_went_back(changes: list[Change]) -> list[str]:
    """The checker: keys of lease and quota tables that were ever written with an older epoch than before."""
    newest: dict[str, int] = {}
    wrong = []
    for change in changes:
        if change.value is None:
            continue
        kind = quota_pb2.LeaseTable if change.key.startswith(keys.LEASES) else capacity_pb2.QuotaTable
        epoch = kind.FromString(change.value).epoch
        if epoch < newest.get(change.key, 0):
            wrong.append(change.key)
        newest[change.key] = max(epoch, newest.get(change.key, 0))
    return wrong


async def history(store: EtcdStore, prefix: str) -> list[Change]:
    """Every write below a prefix since the store began."""
    end = await store.put(prefix + "~end", quota_pb2.LeaseTable(epoch=2**62).SerializeToString())
    changes: list[Change] = []
    async for batch in store.watch(prefix, after_revision=0):
        changes.extend(change for change in batch if change.revision < end)
        if batch[-1].revision >= end:
            break
    await store.delete(prefix + "~end")
    return changes


async def test_frozen_leaders_cannot_write_after_waking_up(side: Side) -> None:
    """Proves fencing of limiter and allocator: SIGSTOP beyond the lease, SIGCONT, and no write of the old epoch."""
    router = await start_two_of_each(side)
    ghosts = [await side.leader_process(service) for service in ("ratelimiter", "capacity")]
    epoch = router.epoch
    for ghost in ghosts:
        ghost.signal(signal.SIGSTOP)

    async def granted_anew() -> bool:
        return await router.report(WANTS) and router.epoch > epoch

    await eventually(granted_anew, 20.0, "the standby grants")
    await side.leader("capacity", other_than=ghosts[1].name)
    for ghost in ghosts:
        ghost.signal(signal.SIGCONT)
    # Enough rounds for both ghosts to try: they were frozen with work due every second.
    reports = router.reports
    await side.put_reservation("a", 50_000)
    await eventually(lambda: holds(router, 50_000), 20.0, "the new leaders work on")

    async def reported_on() -> bool:
        await router.report(WANTS)
        return router.reports > reports + 20

    await eventually(reported_on, 20.0)
    for prefix in (keys.LEASES, keys.QUOTAS):
        changes = await history(side.store, prefix)
        assert changes
        assert not epochs_that_went_back(changes)
    assert all(ghost.running() for ghost in ghosts), "a deposed leader is a standby, not dead"


class FrozenClock:
    """The clock of a process that does not know it was frozen: the worst a ghost can be."""

    def monotonic_ns(self) -> int:
        return 1_000_000_000

    def wall_ns(self) -> int:
        return 1_000_000_000


@pytest.mark.parametrize("fenced", [True, False])
async def test_the_fence_itself_and_the_checker(side: Side, fenced: bool) -> None:
    """Proves that the fence alone stops a ghost that still believes it leads; without it the checker cries out."""
    ghost = Election(side.store, "ratelimiter", admin_pb2.ServiceInstance(instance_id="ghost"), clock=FrozenClock())  # type: ignore[arg-type]
    lease = await side.store.grant_lease(30)
    won = await side.store.commit(
        [Expect.absent(keys.leader("ratelimiter"))], {keys.leader("ratelimiter"): b""}, lease_id=lease
    )
    assert won is not None
    ghost._epoch, ghost._valid_until_ns = won, 2_000_000_000  # type: ignore[assignment]
    await side.store.revoke_lease(lease)
    successor = Router(side, "router-1")
    await start_limiter_alone(side)
    quota = capacity_pb2.Quota(tenant_id="a", model_id=MODEL, granted_milli_mu_per_minute=80_000)
    await side.store.put(
        keys.quota(MODEL, 0), capacity_pb2.QuotaTable(model_id=MODEL, quotas=[quota]).SerializeToString()
    )
    await eventually(lambda: holds(successor, 80_000), 30.0, "the successor grants")
    assert ghost.is_leader, "as far as it knows"

    shard = next(iter(successor.tables))
    key = keys.lease("router-1", shard)
    stale = quota_pb2.LeaseTable(router_id="router-1", shard=shard, epoch=ghost.epoch, table_number=99)
    expects = [ghost.fence()] if fenced else []
    stored = await side.store.commit(expects, {key: stale.SerializeToString()})
    assert (stored is None) == fenced
    assert bool(epochs_that_went_back(await history(side.store, keys.LEASES))) == (not fenced)


async def start_limiter_alone(side: Side) -> None:
    await side.put_model()
    side.start("ratelimiter", "lim-1")
    await side.leader("ratelimiter", other_than="")


async def test_services_survive_a_restart_of_the_store(side: Side) -> None:
    """Proves recovery: etcd is killed, away for longer than every lease, back with its data; nothing else restarts."""
    router = await start_two_of_each(side)
    side.etcd.kill()
    away_s = time.monotonic()

    async def refused() -> bool:
        return not await router.report(WANTS) and time.monotonic() - away_s > 6.0

    await eventually(refused, 30.0, "three election times without the store")
    side.etcd.start()
    back_s = time.monotonic()

    async def granted_again() -> bool:
        return await router.report(WANTS) and router.rate("a") == 80_000

    await eventually(granted_again, 40.0, "leases as before")
    await side.put_reservation("a", 30_000)

    async def follows() -> bool:
        return await router.report(WANTS) and router.rate("a") == 30_000

    await eventually(follows, 20.0, "a changed reservation")
    print(f"store restart: {time.monotonic() - back_s:.1f} s until a changed reservation is in force again")
    for service in ("capacity", "ratelimiter"):
        await side.leader(service)


async def test_an_empty_view_after_a_restart_is_not_believed(side: Side) -> None:
    """Proves caution: an allocator that starts before the agents are back leaves the stored quotas alone."""
    await side.put_model()
    await side.put_replica("r1")
    await side.put_reservation("a", 80_000)
    first = side.start("capacity", "cap-1", "--takeover-caution-s", "4")

    async def granted(rate: int) -> bool:
        return await side.granted("a") == rate

    await eventually(lambda: granted(80_000), 30.0)
    first.kill()
    await side.store.delete(keys.replica("r1"))
    started_s = time.monotonic()
    side.start("capacity", "cap-2", "--takeover-caution-s", "4")
    leader = await side.leader("capacity", other_than="cap-1")
    assert leader.instance_id == "cap-2"
    await eventually(lambda: granted(0), 20.0, "believed in the end")
    assert time.monotonic() - started_s > 4.0
    assert MODEL in (side._folder / "cap-2.log").read_text()
