"""A key in the store that lives exactly as long as the process behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from common.logs import get_logger
from common.store import Store
from fairlead.errors import UnavailableError

log = get_logger(__name__)


class Registration:
    """Keeps a lease-bound key in the store, and puts it back whenever the store lost it.

    Args:
        store: Where to.
        key: Whole key.
        encode: Makes the current value; called before every write.
        ttl_s: The key vanishes this long after the process does.
    """

    def __init__(self, store: Store, key: str, encode: Callable[[], bytes], *, ttl_s: int = 5) -> None:
        self._store = store
        self._key = key
        self._encode = encode
        self._ttl_s = ttl_s
        self._dirty = asyncio.Event()
        self._lease_id = 0

    def update(self) -> None:
        """Writes the value again at once."""
        self._dirty.set()

    async def run(self) -> None:
        """Keeps the key alive until cancelled, then removes it."""
        try:
            while True:
                try:
                    await self._hold()
                except UnavailableError as error:
                    log.warning("registration interrupted", key=self._key, error=error.message)
                await asyncio.sleep(min(1.0, self._ttl_s / 5))
        finally:
            if self._lease_id:
                with contextlib.suppress(UnavailableError, TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._store.revoke_lease(self._lease_id)

    async def _hold(self) -> None:
        self._lease_id = await self._store.grant_lease(self._ttl_s)
        self._dirty.set()
        while True:
            if self._dirty.is_set():
                self._dirty.clear()
                await self._store.put(self._key, self._encode(), lease_id=self._lease_id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ttl_s / 3):
                    await self._dirty.wait()
                continue
            if not await self._store.keep_lease_alive(self._lease_id):
                log.warning("registration expired", key=self._key)
                return
