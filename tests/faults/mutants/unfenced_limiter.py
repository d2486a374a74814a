"""A limiter without fencing: once elected it believes for ever that it leads, and its writes carry no condition."""

from __future__ import annotations

import asyncio

from common.leadership import Election
from common.store import Expect
from tests.faults import mutants


async def _lead_for_ever(self: Election, lease_id: int) -> None:
    """Renews nothing, notices nothing."""
    await self._store.keep_lease_alive(lease_id)
    while True:
        await asyncio.sleep(0.2)
        await self._store.keep_lease_alive(lease_id)


if __name__ == "__main__":
    Election.is_leader = property(lambda self: self._epoch != 0)  # type: ignore[method-assign]
    Election.fence = lambda self: Expect.absent(self._key + "/nobody")  # type: ignore[method-assign]
    Election._lead = _lead_for_ever  # type: ignore[method-assign]
    mutants.run("ratelimiter")
