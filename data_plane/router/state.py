"""What the router copies out of the store, kept current, kept on disk, and handed to the parts that need it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from common import keys
from common.clock import Clock
from common.mirror import Mirror
from common.store import Store
from data_plane.router.assignments import Assignments
from data_plane.router.core.fleet import Fleet
from data_plane.router.lease_desk import LeaseDesk
from data_plane.router.tables import Tables
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.quota.v1 import quota_pb2
from fairlead.sharding.v1 import sharding_pb2
from model_units.cost import CostProfile
from model_units.profiles import built_in_profiles
from model_units.wire import decode_profile

T = TypeVar("T")


class RouterState:
    """The mirrors of one router.

    Args:
        store: Where from.
        router_id: Whose lease table to follow.
        state_dir: Folder for snapshots, or None for none.
        clock: For ages.
    """

    def __init__(self, store: Store, *, router_id: str, state_dir: Path | None, clock: Clock) -> None:
        self._store = store
        self._state_dir = state_dir
        self._clock = clock
        self.api_keys = self._mirror(keys.API_KEYS, admin_pb2.ApiKey.FromString)
        self.tenants = self._mirror(keys.TENANTS, admin_pb2.Tenant.FromString)
        self.models = self._mirror(keys.MODELS, admin_pb2.Model.FromString)
        self.policies = self._mirror(keys.POLICIES, admin_pb2.Reservation.FromString)
        self.stored_assignments = self._mirror(keys.ASSIGNMENTS, sharding_pb2.Assignment.FromString)
        held_path = None if state_dir is None else state_dir / "held-assignments.snapshot"
        self.assignments = Assignments(clock, snapshot_path=held_path)
        self.stored_assignments.on_change(self.assignments.stored)
        self.replicas = self._mirror(keys.REPLICAS, engine_pb2.Replica.FromString)
        self.leaders = self._mirror(keys.LEADERS, admin_pb2.ServiceInstance.FromString)
        self.leases = self._mirror(keys.leases_of(router_id), quota_pb2.LeaseTable.FromString)
        self.profiles: Mirror[CostProfile] = self._mirror(keys.PROFILES, decode_profile)

    @property
    def _mirrors(self) -> tuple[Mirror[Any], ...]:
        configured = (self.api_keys, self.tenants, self.models, self.policies, self.profiles)
        return (*configured, self.stored_assignments, self.replicas, self.leaders, self.leases)

    def missing(self) -> str | None:
        """Says what the router cannot serve without: neither the store nor a snapshot gave it yet."""
        if all(mirror.usable for mirror in self._mirrors):
            return None
        return "waiting for the first copy of the configuration: etcd does not answer and there is no snapshot"

    def tables(self) -> Tables:
        """Look-ups over the mirrors; profiles are those that ship and those in the store."""
        return Tables(
            keys=self.api_keys.items,
            tenants=self.tenants.items,
            models=self.models.items,
            policies=self.policies.items,
            assignments=self.assignments,
            profiles=built_in_profiles().with_live(self.profiles.items),
        )

    def feed_fleet(self, fleet: Fleet, changed: Callable[[], None]) -> None:
        """Keeps a fleet in step with the records of the replicas; `changed` is called after every change."""

        def on_change(replica_id: str, record: engine_pb2.Replica | None) -> None:
            now_ns = self._clock.monotonic_ns()
            if record is None:
                fleet.delist(replica_id, now_ns)
            else:
                fleet.enlist(record, now_ns)
            changed()

        self.replicas.on_change(on_change)

    def feed_leases(self, desk: LeaseDesk) -> None:
        """Hands every lease table that comes through the store to the desk."""

        def on_change(_shard: str, table: quota_pb2.LeaseTable | None) -> None:
            if table is not None:
                desk.take(table)

        self.leases.on_change(on_change)

    async def run(self) -> None:
        """Keeps every mirror, and the assignments on disk, current until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.assignments.run())
            for mirror in self._mirrors:
                tasks.create_task(mirror.run())

    def _mirror(self, prefix: str, decode: Callable[[bytes], T]) -> Mirror[T]:
        path = None
        if self._state_dir is not None:
            path = self._state_dir / (prefix.removeprefix(keys.PREFIX).strip("/").replace("/", "-") + ".snapshot")
        return Mirror(self._store, prefix, decode, snapshot_path=path, clock=self._clock)
