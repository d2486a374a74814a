"""A calibration's record in the leader's hands: every change is compare-and-swap under the leader's fence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from common.clock import NS_PER_S, Clock
from common.store import Entry, Expect, Store
from control_plane.records import stored_bytes
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import NotLeaderError, UnavailableError

# A store that is away this long ends the run; whoever leads when it is back goes on from what was stored.
_STORE_PATIENCE_S: Final = 60.0
_RETRY_S: Final = 0.5


class TakenError(Exception):
    """Somebody else changed the record: it was paused, or deleted."""


class HeldRecord:
    """One calibration that this leader carries out.

    Args:
        store: Where it is.
        entry: As read.
        fence: The leader's condition; raises NotLeaderError.
        clock: Dates changes.

    Attributes:
        calibration: The record; change it, then `save`.
    """

    def __init__(self, store: Store, entry: Entry, fence: Callable[[], Expect], clock: Clock) -> None:
        self._store = store
        self._key = entry.key
        self._revision = entry.revision
        self._fence = fence
        self._clock = clock
        self.calibration = pb.Calibration.FromString(entry.value)

    async def save(self, expects: Sequence[Expect] = (), puts: Mapping[str, bytes] = MappingProxyType({})) -> bool:
        """Writes the record, and other values with it.

        Args:
            expects: Further conditions.
            puts: Further values.

        Returns:
            False when one of `expects` does not hold any more; then nothing was written.

        Raises:
            TakenError: Somebody else changed the record.
            NotLeaderError: This instance does not lead any more.
            UnavailableError: The store was away for long; the write may or may not have happened.
        """
        self.calibration.update_time.FromNanoseconds(self._clock.wall_ns())
        value = stored_bytes(self.calibration)
        patient_until_ns = self._clock.monotonic_ns() + round(_STORE_PATIENCE_S * NS_PER_S)
        while True:
            try:
                return await self._write(value, expects, puts)
            except UnavailableError:
                if self._clock.monotonic_ns() > patient_until_ns:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def _write(self, value: bytes, expects: Sequence[Expect], puts: Mapping[str, bytes]) -> bool:
        unchanged = Expect(self._key, revision=self._revision)
        revision = await self._store.commit([self._fence(), unchanged, *expects], {self._key: value, **puts})
        if revision is None:
            entry = await self._store.get(self._key)
            if entry is not None and entry.value == value:
                revision = entry.revision  # an earlier try of this very write took effect, its answer was lost
            elif entry is None or entry.revision != self._revision:
                raise TakenError
            elif not expects:
                raise NotLeaderError("another instance leads by now")
            else:
                self._fence()
                return False
        self._revision = revision
        return True
