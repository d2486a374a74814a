from __future__ import annotations

import asyncio

import pytest

from common import keys
from common.memory_store import MemoryStore
from common.shard_map import Generation
from engines.agent.assignments import AssignmentHolder
from engines.agent.metrics import Misrouting
from engines.agent.notices import Notices
from fairlead.errors import InvalidArgumentError
from fairlead.sharding.v1 import sharding_pb2
from tests.support.waiting import eventually

HALF = 1 << 63
MINE, HIS = 5, HALF + 5
"""Keys of slices that `assignment` gives this replica and the other one."""


def assignment(
    number: int, *, model: str = "m", incarnation: int = 1, replicas: tuple[str, str] = ("me", "other")
) -> sharding_pb2.Assignment:
    listed = sorted(set(replicas))
    return sharding_pb2.Assignment(
        model_id=model,
        generation=sharding_pb2.Generation(incarnation=incarnation, number=number),
        replica_ids=listed,
        slices=[
            sharding_pb2.Slice(first_key=first, replicas=[listed.index(name)])
            for first, name in zip((0, HALF), replicas, strict=True)
        ],
    )


def handing(*assignments: sharding_pb2.Assignment, **held: int) -> sharding_pb2.ExchangeAssignmentsRequest:
    request = sharding_pb2.ExchangeAssignmentsRequest(assignments=assignments)
    for model, number in held.items():
        request.held[model].CopyFrom(sharding_pb2.Generation(incarnation=1, number=number))
    return request


def holder(store: MemoryStore | None = None, changed: Notices | None = None) -> AssignmentHolder:
    return AssignmentHolder(store or MemoryStore(), model_id="m", replica_id="me", changed=changed or Notices())


async def test_the_store_is_followed_and_outlived() -> None:
    """Proves that newer assignments come from the store, that the model whose name begins alike is another one, and
    that nothing takes an assignment away: no older one, no damaged one, no deletion, no end of the store."""
    store, changed = MemoryStore(), Notices()
    held = holder(store, changed)
    assert (held.generation, held.names_replica) == (None, False)
    await store.put(keys.assignment("m"), assignment(7).SerializeToString())
    await store.put(keys.assignment("mm"), assignment(99, model="mm").SerializeToString())
    task = asyncio.create_task(held.run())
    with changed.listen() as told:
        await eventually(lambda: held.generation == Generation(1, 7))
        assert told.is_set()
    for worse in (assignment(6), assignment(99, model="other"), sharding_pb2.Assignment(model_id="m")):
        await store.put(keys.assignment("m"), worse.SerializeToString())
    await store.put(keys.assignment("m"), b"\xff")
    await store.delete(keys.assignment("m"))
    await store.put(keys.assignment("m"), assignment(8).SerializeToString())
    await eventually(lambda: held.generation == Generation(1, 8))
    await store.put(keys.assignment("m"), assignment(1, incarnation=2).SerializeToString())
    await eventually(lambda: held.generation == Generation(2, 1))
    await store.set_down(True)
    await asyncio.sleep(0)
    assert held.generation == Generation(2, 1)
    task.cancel()


def test_two_that_meet_end_with_the_newer_one() -> None:
    """Proves each case of an exchange: neither has one, the caller has none, an older, the same or a newer one, and
    hands it over or only says so."""
    held = holder()
    assert held.exchange(handing()) == sharding_pb2.ExchangeAssignmentsResponse()
    assert list(held.exchange(handing(m=5)).wanted_model_ids) == ["m"]
    answer = held.exchange(handing(assignment(5), m=5))
    assert answer == sharding_pb2.ExchangeAssignmentsResponse()
    assert held.generation == Generation(1, 5)
    assert list(held.exchange(handing()).assignments) == [assignment(5)]
    assert list(held.exchange(handing(m=4)).assignments) == [assignment(5)]
    assert list(held.exchange(handing(assignment(3))).assignments) == [assignment(5)]
    assert held.exchange(handing(m=5)) == sharding_pb2.ExchangeAssignmentsResponse()
    assert held.exchange(handing(m=6)).wanted_model_ids == ["m"]
    assert not held.exchange(handing(assignment(6), m=6)).wanted_model_ids
    assert held.generation == Generation(1, 6)


def test_other_models_assignments_are_not_kept() -> None:
    """Proves that what a caller holds of other models neither stays here nor is asked for, damaged or not."""
    held = holder()
    damaged = sharding_pb2.Assignment(model_id="n")
    answer = held.exchange(handing(assignment(9, model="mm"), damaged, mm=9))
    assert answer == sharding_pb2.ExchangeAssignmentsResponse()
    assert held.generation is None


def _break(what: str) -> sharding_pb2.Assignment:
    broken = assignment(9)
    match what:
        case "no slices":
            del broken.slices[:]
        case "a gap at the beginning":
            broken.slices[0].first_key = 1
        case "out of order":
            broken.slices[1].first_key = 0
        case "an unknown replica":
            broken.slices[0].replicas[0] = 77
        case "an empty slice":
            del broken.slices[1].replicas[:]
        case "no generation":
            broken.ClearField("generation")
        case "an endless generation":
            broken.generation.number = 2**64 - 1
    return broken


@pytest.mark.parametrize(
    "what",
    [
        "no slices",
        "a gap at the beginning",
        "out of order",
        "an unknown replica",
        "an empty slice",
        "no generation",
        "an endless generation",
    ],
)
def test_damaged_ones_are_refused(what: str) -> None:
    """Proves that a damaged assignment is refused by name and changes nothing, whatever else comes with it."""
    held = holder()
    held.exchange(handing(assignment(5)))
    with pytest.raises(InvalidArgumentError, match="'m' is damaged"):
        held.exchange(handing(assignment(6), _break(what)))
    assert held.generation == Generation(1, 5)


def test_who_is_misrouted_and_why() -> None:
    """Proves each cause, and that nothing is counted that cannot be judged."""
    held = holder()
    assert held.misrouting(HIS, None) is None, "no assignment is held"
    held.exchange(handing(assignment(5)))
    assert held.misrouting(MINE, None) is None
    assert held.misrouting(MINE, Generation(1, 1)) is None
    assert held.misrouting(HIS, None) is Misrouting.NO_ASSIGNMENT
    assert held.misrouting(HIS, Generation(1, 4)) is Misrouting.STALE_ROUTER
    assert held.misrouting(HIS, Generation(1, 5)) is Misrouting.OVERFLOW
    assert held.misrouting(HIS, Generation(1, 6)) is None, "the router knows better"
    assert held.misrouting(0, Generation(1, 4)) is None, "the router did not say where it lies"


async def test_a_replica_is_released_when_it_is_not_named() -> None:
    """Proves that waiting for the release ends at once where nothing names the replica, and else with the assignment
    that does not."""
    changed = Notices()
    held = holder(changed=changed)
    await held.released()
    held.exchange(handing(assignment(5)))
    waiting = asyncio.create_task(held.released())
    held.exchange(handing(assignment(6, replicas=("other", "me"))))
    changed.notify()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    held.exchange(handing(assignment(7, replicas=("other", "third"))))
    await waiting
