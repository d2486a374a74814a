"""One process of a service that has a leader and standbys: its servers, its record in the store and its candidacy.

The order matters. Coming: listen, then register and campaign, so that nobody is sent to an address that does not answer
yet. Going: give up the leadership first, so that a standby takes over while calls in flight finish here.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from common import keys
from common.config import CommonConfig
from common.leadership import Election
from common.logs import get_logger
from common.ops import OpsServer
from common.registration import Registration
from common.rpc import GrpcServer
from common.store import Store
from common.telemetry import Telemetry
from fairlead.admin.v1 import admin_pb2

log = get_logger(__name__)

_LOOK_INTERVAL_S = 0.1


class Member:
    """This process as a member of its service.

    Args:
        service: Service name, as in `common.keys`.
        config: Where to listen; `instance_id` names this process, empty draws a name.
        store: Where to register and campaign.
        telemetry: Shut down at the end.
        election_ttl_s: A dead leader is replaced after about this long.

    Attributes:
        me: This process's record; the addresses are filled in once it listens.
        election: Its candidacy.
    """

    def __init__(
        self, service: str, config: CommonConfig, store: Store, telemetry: Telemetry, *, election_ttl_s: int
    ) -> None:
        self.me = admin_pb2.ServiceInstance(
            service=service,
            instance_id=config.instance_id or f"{service}-{secrets.token_hex(4)}",
            pid=os.getpid(),
        )
        self.me.start_time.GetCurrentTime()
        self.election = Election(store, service, self.me, ttl_s=election_ttl_s)
        self._config = config
        self._store = store
        self._telemetry = telemetry
        self._registration = Registration(store, keys.service(service, self.me.instance_id), self._record)

    async def serve(
        self,
        stop: asyncio.Event,
        server: GrpcServer,
        ops: OpsServer,
        loops: Sequence[Callable[[], Coroutine[Any, Any, None]]],
    ) -> None:
        """Listens, registers, campaigns and runs the service's loops until `stop` is set; then goes in order.

        Args:
            stop: Ends the service.
            server: With every API added.
            ops: Health and metrics.
            loops: Run side by side until the end; one that raises ends the process.
        """
        try:
            self.me.address = await server.start()
            self.me.ops_address = await ops.start()
            log.info("serving", instance=self.me.instance_id, grpc=self.me.address, ops=self.me.ops_address)
            own = (self.election.run, self._registration.run, self._announce_leadership)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(loop()) for loop in (*own, *loops)]
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await server.drain_and_stop(self._config.drain_grace_s)
            await ops.stop()
            await self._store.close()
            await asyncio.to_thread(self._telemetry.shutdown)

    def _record(self) -> bytes:
        now = admin_pb2.ServiceInstance()
        now.CopyFrom(self.me)
        now.epoch = self.election.epoch
        now.leader = now.epoch != 0
        return now.SerializeToString()

    async def _announce_leadership(self) -> None:
        """Keeps `leader` and `epoch` of the record true; a lost leadership sets no event, so it is looked for."""
        known = 0
        while True:
            if self.election.epoch != known:
                known = self.election.epoch
                self._registration.update()
            await asyncio.sleep(_LOOK_INTERVAL_S)
