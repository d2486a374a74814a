"""What a leader learns from those that still hold assignments."""

from __future__ import annotations

import time

from common.shard_map import GENERATION_MAX, Generation
from control_plane.assignment_messages import to_message
from control_plane.assignment_recovery import AssignmentRecovery, Holder, renewed
from control_plane.core.sharding.values import Cause, Move, Placement, Slice
from fairlead.sharding.v1 import sharding_pb2
from tests.support.agents import FakeAgent

RECOVERY = AssignmentRecovery("platform-token", 3.0)


def placement(incarnation: int, number: int, *replica_ids: str) -> Placement:
    names = tuple(sorted(replica_ids or ("a",)))
    return Placement(Generation(incarnation, number), (Slice(0, names),), {name: name for name in names})


def held(model_id: str, incarnation: int, number: int, *replica_ids: str) -> sharding_pb2.Assignment:
    return to_message(model_id, placement(incarnation, number, *replica_ids), 0)


def holder(agent: FakeAgent, *, is_router: bool = False) -> Holder:
    return Holder(agent.replica_id, agent.address, is_router)


async def test_the_newest_of_all_wins() -> None:
    """Proves that of many holders the newest generation of each model is taken, and only what is newer than held."""
    async with FakeAgent("a") as a, FakeAgent("b") as b:
        a.held = [held("tiny", 3, 10), held("other", 9, 1), held("known", 2, 2)]
        b.held = [held("tiny", 3, 12, "a", "b"), held("other", 8, 99)]
        found = await RECOVERY.ask([holder(a), holder(b)], {"known": Generation(2, 2)})
    assert {model: each.generation for model, each in found.placements.items()} == {
        "tiny": Generation(3, 12),
        "other": Generation(9, 1),
    }
    assert found.placements["tiny"] == placement(3, 12, "a", "b")
    assert (set(found.answered), set(found.silent)) == ({"a", "b"}, set())


async def test_routers_are_shown_the_token_and_agents_are_not() -> None:
    """Proves that the platform's token goes to routers only."""
    async with FakeAgent("agent") as agent, FakeAgent("router") as router:
        await RECOVERY.ask([holder(agent), holder(router, is_router=True)], {})
    assert router.metadata["authorization"] == "Platform platform-token"
    assert "authorization" not in agent.metadata


async def test_holders_that_hang_crash_or_lie_cost_little() -> None:
    """Proves that a bounded wait is enough: who hangs, is gone, or hands over damage hides nobody who is sound."""
    async with FakeAgent("hangs") as hangs, FakeAgent("lies") as lies, FakeAgent("sound") as sound:
        hangs.silent = True
        damaged = held("tiny", 99, 99)
        damaged.slices[0].replicas.append(7)
        endless = held("tiny", GENERATION_MAX + 1, 1)
        lies.held = [damaged, endless, sharding_pb2.Assignment(model_id="tiny")]
        sound.held = [held("tiny", 1, 5)]
        gone = Holder("gone", "127.0.0.1:1")
        began_s = time.monotonic()
        found = await RECOVERY.ask([holder(hangs), gone, holder(lies), holder(sound)], {})
        assert time.monotonic() - began_s < 3.5
    assert found.placements == {"tiny": placement(1, 5)}
    assert (set(found.answered), set(found.silent)) == ({"lies", "sound"}, {"hangs", "gone"})


async def test_a_hundred_holders_that_hang_end_in_time() -> None:
    """Proves that the wait for all together is bounded, however many hang."""
    async with FakeAgent("hangs") as hangs:
        hangs.silent = True
        began_s = time.monotonic()
        found = await AssignmentRecovery("t", 1.5).ask(
            [Holder(f"hangs-{number}", hangs.address) for number in range(100)], {}
        )
        assert time.monotonic() - began_s < 5.0
    assert (len(found.answered), len(found.silent)) == (0, 100)


async def test_routers_are_asked_first_and_agents_by_chance() -> None:
    """Proves that a fleet that hangs cannot keep a router from being asked, and that it is not the same agents every
    time that there is no time to ask."""
    async with FakeAgent("hangs") as hangs, FakeAgent("router") as router, FakeAgent("sound") as sound:
        hangs.silent = True
        router.held = [held("tiny", 1, 5)]
        hanging = [Holder(f"hangs-{number}", hangs.address) for number in range(300)]
        recovery = AssignmentRecovery("t", 1.3)
        for _ in range(20):
            found = await recovery.ask([*hanging, holder(sound), holder(router, is_router=True)], {})
            assert found.placements == {"tiny": placement(1, 5)}
            assert found.silent >= {each.name for each in hanging}
            if sound.asked:
                break
        assert sound.asked


async def test_nobody_to_ask_is_an_answer() -> None:
    """Proves that an empty fleet is asked at once."""
    assert not (await RECOVERY.ask([], {})).placements


def test_what_is_recovered_goes_on_in_its_own_line() -> None:
    """Proves that the successor is newer than what every holder has, even where the clock went back."""
    old = Placement(
        Generation(7, 5_000), (Slice(0, ("a",)),), {"a": "a"}, "x", (Move(0, "", "", "a", Cause.DRAIN, 1, 1),), 1
    )
    assert renewed(old, 9_000).generation == Generation(7, 9_000)
    again = renewed(old, 10)
    assert again.generation == Generation(7, 5_001)
    assert (again.slices, again.moves, again.moved) == (old.slices, (), 0)
