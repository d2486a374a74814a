"""A calibration's record in the leader's hands: nobody's change is overwritten, no deposed leader writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from common import keys
from common.clock import SystemClock
from common.memory_store import MemoryStore
from common.store import Expect
from control_plane.calibration.held import HeldRecord, TakenError
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import NotLeaderError, Reason, UnavailableError

ID = "m@1"
KEY = keys.calibration(ID)
LEADER = keys.leader("control-plane")


class LossyStore(MemoryStore):
    """Loses the answers to some commits: the write happened, and nobody is told.

    Attributes:
        lost: Answers to lose yet.
    """

    lost = 0

    async def commit(
        self,
        expects: Sequence[Expect],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        *,
        lease_id: int = 0,
    ) -> int | None:
        revision = await super().commit(expects, puts, deletes, lease_id=lease_id)
        if self.lost:
            self.lost -= 1
            raise UnavailableError("no answer", reason=Reason.STORE_UNAVAILABLE)
        return revision


async def held(store: MemoryStore) -> HeldRecord:
    await store.put(KEY, pb.Calibration(calibration_id=ID, model_id="m").SerializeToString())
    epoch = await store.put(LEADER, b"me")
    entry = await store.get(KEY)
    assert entry is not None
    return HeldRecord(store, entry, lambda: Expect(LEADER, create_revision=epoch), SystemClock())


async def stored(store: MemoryStore) -> pb.Calibration:
    entry = await store.get(KEY)
    assert entry is not None
    return pb.Calibration.FromString(entry.value)


async def test_changes_are_written_one_after_the_other() -> None:
    """Proves that each save is stored and the next one follows on it, together with what else was to be written."""
    store = MemoryStore()
    record = await held(store)
    record.calibration.detail = "one"
    assert await record.save()
    record.calibration.detail = "two"
    assert await record.save([Expect.absent("other")], {"other": b"value"})
    assert (await stored(store)).detail == "two"
    assert (await store.get("other")) is not None
    assert not await record.save([Expect.absent("other")], {"third": b""})
    assert await store.get("third") is None, "all or nothing"


async def test_somebody_elses_change_wins() -> None:
    """Proves that a pause in between is not overwritten, and neither is a deletion."""
    store = MemoryStore()
    record = await held(store)
    await store.put(KEY, pb.Calibration(calibration_id=ID, detail="paused").SerializeToString())
    with pytest.raises(TakenError):
        await record.save()
    assert (await stored(store)).detail == "paused"
    record = await held(store)
    await store.delete(KEY)
    with pytest.raises(TakenError):
        await record.save()
    assert await store.get(KEY) is None


async def test_a_deposed_leader_does_not_write() -> None:
    """Proves that the fence keeps a leader from writing that is none any more."""
    store = MemoryStore()
    record = await held(store)
    await store.delete(LEADER)
    await store.put(LEADER, b"another")
    record.calibration.detail = "ghost"
    with pytest.raises(NotLeaderError):
        await record.save()
    assert (await stored(store)).detail == ""


async def test_a_lost_answer_is_no_conflict() -> None:
    """Proves that a write whose answer was lost is recognised as one's own, and the next one follows on it."""
    store = LossyStore()
    record = await held(store)
    store.lost = 1
    record.calibration.detail = "one"
    assert await record.save()
    record.calibration.detail = "two"
    assert await record.save()
    assert (await stored(store)).detail == "two"
