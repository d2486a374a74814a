"""Leader election over the store, with a fencing epoch.

The leader's key is created by a transaction on its absence and lives on a lease. Its create revision is the epoch: it
grows with every election, and a commit that expects it (`fence`) can only succeed while that very leader still holds
the key. So a leader that was frozen and wakes up as a ghost cannot write, whatever it believes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from common import keys
from common.clock import NS_PER_S, Clock, SystemClock
from common.logs import get_logger
from common.store import CompactedError, Epoch, Expect, Store
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import NotLeaderError, UnavailableError

log = get_logger(__name__)


class Election:
    """One instance's candidacy for the leadership of a service.

    Args:
        store: Where the election is held.
        service: Service name, as in `common.keys`.
        me: This instance; its address is published while it leads.
        ttl_s: A dead leader is replaced after about this long.
        clock: The leader stops believing in itself on its own clock, before its lease can end at the store.
    """

    def __init__(
        self,
        store: Store,
        service: str,
        me: admin_pb2.ServiceInstance,
        *,
        ttl_s: int = 5,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._key = keys.leader(service)
        self._service = service
        self._me = me
        self._ttl_s = ttl_s
        self._clock = clock or SystemClock()
        self._epoch = Epoch(0)
        self._valid_until_ns = 0
        self._elected = asyncio.Event()

    @property
    def is_leader(self) -> bool:
        """Whether this instance leads, as far as its own clock can tell. Only `fence` makes a write safe."""
        return self._epoch != 0 and self._clock.monotonic_ns() < self._valid_until_ns

    @property
    def epoch(self) -> Epoch:
        """Epoch of the current leadership; 0 while not leading."""
        return self._epoch if self.is_leader else Epoch(0)

    def fence(self) -> Expect:
        """The condition every leader's write must carry.

        Raises:
            NotLeaderError: This instance does not lead.
        """
        if not self.is_leader:
            raise NotLeaderError(f"this instance of {self._service} is not the leader")
        return Expect(self._key, create_revision=self._epoch)

    async def wait_leader(self) -> None:
        """Returns once this instance leads."""
        while not self.is_leader:
            await self._elected.wait()
            if not self.is_leader:
                await asyncio.sleep(0.05)

    async def terms(self) -> AsyncIterator[Epoch]:
        """Yields the epoch whenever this instance leads and its last term was dealt with; never ends by itself."""
        while True:
            await self.wait_leader()
            if epoch := self.epoch:
                yield epoch

    async def run(self) -> None:
        """Campaigns, leads, campaigns again; gives the leadership up when cancelled."""
        while True:
            lease_id = 0
            try:
                lease_id = await self._store.grant_lease(self._ttl_s)
                await self._campaign(lease_id)
                await self._lead(lease_id)
            except UnavailableError as error:
                log.warning("election interrupted", service=self._service, error=error.message)
            finally:
                self._step_down()
                if lease_id:
                    with contextlib.suppress(UnavailableError, TimeoutError):
                        async with asyncio.timeout(1.0):
                            await self._store.revoke_lease(lease_id)
            await asyncio.sleep(0.5)

    async def _campaign(self, lease_id: int) -> None:
        while True:
            asked_ns = self._clock.monotonic_ns()
            if not await self._store.keep_lease_alive(lease_id):
                raise UnavailableError("the candidate's lease ended")
            mine = admin_pb2.ServiceInstance()
            mine.CopyFrom(self._me)
            mine.leader = True
            created = await self._store.commit(
                [Expect.absent(self._key)], {self._key: mine.SerializeToString()}, lease_id=lease_id
            )
            if created is not None:
                self._epoch = Epoch(created)
                self._valid_until_ns = asked_ns + self._ttl_s * NS_PER_S
                self._elected.set()
                log.info("leading", service=self._service, epoch=created)
                return
            await self._wait_vacancy()

    async def _wait_vacancy(self) -> None:
        """Returns when the leader's key may be gone, or in time to renew the candidate's own lease."""
        listing = await self._store.list(self._key)
        if not any(entry.key == self._key for entry in listing.entries):
            return
        # From the present on: the history since the leader was elected may be compacted away.
        watch = self._store.watch(self._key, after_revision=listing.revision)
        try:
            async with asyncio.timeout(self._ttl_s / 3):
                async for changes in watch:
                    if any(change.value is None for change in changes):
                        return
        except (TimeoutError, CompactedError):
            return
        finally:
            await watch.aclose()  # type: ignore[attr-defined]  # every Store.watch is an async generator

    async def _lead(self, lease_id: int) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 5)
            asked_ns = self._clock.monotonic_ns()
            try:
                if not await self._store.keep_lease_alive(lease_id):
                    log.warning("leadership lost", service=self._service, epoch=self._epoch)
                    return
            except UnavailableError:
                if not self.is_leader:
                    raise
                continue
            self._valid_until_ns = asked_ns + self._ttl_s * NS_PER_S

    def _step_down(self) -> None:
        self._epoch = Epoch(0)
        self._valid_until_ns = 0
        self._elected.clear()
