"""Old usage is deleted by the control plane's leader, some keys at a time."""

from __future__ import annotations

import asyncio
from typing import Final

from common import keys
from common.clock import NS_PER_S, Clock
from common.leadership import Election
from common.logs import get_logger
from common.store import Entry, Epoch, Store
from control_plane.core.usage import HOUR_S, hour_name
from control_plane.usage import oldest_kept_s, state_of
from fairlead.errors import NotLeaderError, UnavailableError

log = get_logger(__name__)

LOOK_INTERVAL_S: Final = 600.0
"""Hours pass slowly."""

RECENT_S: Final = 24 * HOUR_S
"""With no usage written for this long, either nothing is used or this machine's clock is ahead: nothing is deleted."""

DELETES_MAX: Final = 100
"""Keys in one commit: etcd refuses transactions of more than 128 operations (--max-txn-ops)."""

_END: Final = keys.USAGE.removesuffix("/") + "0"  # '0' follows '/': after every table


class UsageRetention:
    """Forgets while this instance leads.

    Args:
        store: Where usage is.
        election: This instance's candidacy.
        clock: Wall time.
        retention_days: Usage is kept for so long, 1 or more.
    """

    def __init__(self, store: Store, election: Election, clock: Clock, *, retention_days: int) -> None:
        self._store = store
        self._election = election
        self._clock = clock
        self._retention_days = retention_days

    async def run(self) -> None:
        """Leads whenever elected, until cancelled."""
        async for epoch in self._election.terms():
            await self._lead(epoch)

    async def _lead(self, epoch: Epoch) -> None:
        while self._election.epoch == epoch:
            try:
                await self.sweep()
            except NotLeaderError:
                return
            except UnavailableError as error:
                log.warning("store unavailable, old usage stays", error=error.message)
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def sweep(self) -> int:
        """Deletes every table of hours that are no longer kept, and what processes said of themselves as long ago.

        One hour more than is exported stays, so that no export loses its oldest hour while it is read. Nothing is
        deleted where nothing was written lately: a clock that stepped ahead must not take anybody's usage with it.

        Returns:
            Keys deleted.

        Raises:
            NotLeaderError: This instance does not lead.
        """
        now_s = self._clock.wall_ns() / NS_PER_S
        recent = keys.USAGE + hour_name(max(0, int(now_s) - RECENT_S))
        if not await self._store.list_keys(recent, _END, 1):
            return 0
        oldest_s = oldest_kept_s(now_s, self._retention_days) - HOUR_S
        end, deleted = keys.USAGE + hour_name(max(0, oldest_s)), 0
        while old := await self._store.list_keys(keys.USAGE, end, DELETES_MAX):
            if await self._store.commit([self._election.fence()], {}, old) is None:
                break
            deleted += len(old)
        states = (await self._store.list(keys.USAGE_STATES)).entries
        past = [entry.key for entry in states if _is_past(entry, oldest_s)]
        for start in range(0, len(past), DELETES_MAX):
            some = past[start : start + DELETES_MAX]
            if await self._store.commit([self._election.fence()], {}, some) is None:
                break
            deleted += len(some)
        if deleted:
            log.info("usage forgotten", keys=deleted, before=end.removeprefix(keys.USAGE))
        return deleted


def _is_past(entry: Entry, oldest_s: int) -> bool:
    """Whether a process's whole usage is older than what is kept; what cannot be read stays for people to see."""
    state = state_of(entry)
    return state is not None and state.stored_until_time.seconds < oldest_s
