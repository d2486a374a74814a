"""The sharder through a thousand rounds of crashes, surges and nonsense, and through one planned event at a time."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest

from common.shard_map import Generation, tenant_keys
from control_plane.core.sharding.assigner import Assigner
from control_plane.core.sharding.values import Cause, Life, Placement, Round, View
from tests.support.sharder_driver import Driver, Rounds
from tests.support.sharder_world import CAPACITY, PART_BITS, Demand, World, slice_at

FLEETS = [(1, 60), (2, 140), (3, 300), (6, 240), (16, 200), (64, 60)]
"""Replicas, and rounds: a thousand in all."""
TWIN_ROUNDS = 15
"""Of each fleet's rounds, so many are asked for in another order too."""
SETTLING_ROUNDS = 24
TENANTS = 64
PAUSE_MS = 110_000
"""On top of every settling round: subsets shrink half of the way in five minutes; nothing else depends on the pace."""
REMOVED = (Cause.REMOVAL, Cause.DRAIN, Cause.ADDITION)


def chaos(driver: Driver, rounds: int) -> None:
    """Lets things happen to a fleet, and the sharder answer each of them."""
    world = driver.world
    for _ in range(rounds):
        for _ in range(world.random.choice((0, 0, 1, 1, 2, 5))):
            world.disturb()
        world.now_ms += world.random.choice((0, 1_000, 15_000, 60_000, 400_000, -300_000))
        match world.random.random():
            case draw if draw < 0.02:
                driver.lose()
            case draw if draw < 0.05:
                driver.go_back()
        driver.round(world.nonsense(world.view(driver.placement)), balance=world.random.random() < 0.6)


@pytest.mark.parametrize("unequal", [False, True], ids=["equal", "unequal"])
@pytest.mark.parametrize(("replicas", "rounds"), FLEETS, ids=[f"{replicas}-replicas" for replicas, _ in FLEETS])
def test_every_invariant_holds_through_chaos(replicas: int, rounds: int, unequal: bool) -> None:
    """Whatever crashes, surges, lies or is forgotten, every round leaves a whole, healthy, explained placement."""
    driver = Driver(World(replicas, replicas, unequal=unequal), twin_rounds=TWIN_ROUNDS)
    chaos(driver, rounds // 2)
    assert len(driver.past) > rounds // 20, "the fleet was quiet; nothing was tested"


@functools.cache
def _settled(replicas: int, unequal: bool, load: float) -> Driver:
    driver = Driver(World(1, replicas, unequal=unequal, load=load, tenants=TENANTS), twin_rounds=0)
    for _ in range(SETTLING_ROUNDS):
        driver.world.now_ms += PAUSE_MS
        driver.regular()
    driver.causes.clear()
    return driver


def settled(replicas: int, *, unequal: bool = False, load: float = 0.6) -> Driver:
    """A sharder that has had the time to balance its fleet."""
    return copy.deepcopy(_settled(replicas, unequal, load))


def skew(driver: Driver) -> float:
    """Utilisation of the busiest replica over the fleet's."""
    assert driver.placement is not None
    used = driver.world.utilisation(driver.placement)
    capacity = sum(server.capacity for server in driver.world.servers() if server.life is Life.OPEN)
    return max(used.values()) / (driver.world.total() / capacity)


@pytest.mark.parametrize("unequal", [False, True], ids=["equal", "unequal"])
def test_utilisation_is_even_while_tenants_change(unequal: bool) -> None:
    """Over 60 rounds of drifting tenants and replaced replicas the busiest replica is at most 1.20 of the mean in the
    median and never more than 1.5, and balancing moves at most 5 % of the load in any round."""
    driver = settled(16, unequal=unequal)
    world, skews, shares = driver.world, [], []
    for number in range(60):
        for demand in world.tenants.values():
            demand.rate = max(1, round(demand.rate * world.random.lognormvariate(0.0, 0.02)))
        if number % 30 == 15:
            world.restart(world.random.choice(world.seats))
            driver.health()
        before = driver.causes[Cause.BALANCE] + driver.causes[Cause.OVERLAP]
        driver.regular(noise=0.05)
        shares.append((driver.causes[Cause.BALANCE] + driver.causes[Cause.OVERLAP] - before) / world.total())
        skews.append(skew(driver))
    assert median(skews) <= 1.20
    assert max(skews) <= 1.5
    assert max(shares) <= 0.06
    assert sum(shares) / len(shares) <= 0.01


def test_noise_moves_next_to_nothing() -> None:
    """Load that wobbles by 20 % makes balancing move less than 1 % of it per round."""
    driver = settled(16)
    for _ in range(40):
        driver.regular(noise=0.2)
    for cause in (Cause.BALANCE, Cause.OVERLAP):
        assert driver.causes[cause] / 40 / driver.world.total() < 0.01, cause


def test_a_surge_is_levelled_in_90_s() -> None:
    """A tenant that triples is spread until the busiest replica is at most 1.2 of the mean within 90 s: six rounds."""
    driver = settled(16)
    driver.world.tenants["tenant-3"].rate *= 3
    skews = []
    for _ in range(6):
        driver.regular()
        skews.append(skew(driver))
    assert skews[-1] <= 1.2, skews


def test_a_hot_key_range_is_cut_out() -> None:
    """A tenant whose load meets in one of its sixteen parts gets more than one slice or more replicas there, as long as
    the others leave that many."""
    driver = settled(16)
    for demand in driver.world.tenants.values():
        demand.rate //= 2
    driver.world.tenants["tenant-0"] = Demand(5 * CAPACITY, [50.0 if part == 5 else 1.0 for part in range(16)])
    for _ in range(SETTLING_ROUNDS):
        placement = driver.regular()
    hot = slice_at(placement, tenant_keys("tenant-0")[0] + (5 << PART_BITS))
    assert len(hot.replica_ids) >= 6
    assert skew(driver) <= 1.5


@pytest.mark.parametrize("replicas", [4, 16, 64])
def test_losing_one_replica_moves_its_part_only(replicas: int) -> None:
    """The crash of 1 of N moves at most 1.05 / N of the load, all of it for the removal, none for balance."""
    driver = settled(replicas)
    world = driver.world
    victim = max(world.seats, key=lambda seat: world.utilisation(driver.placement)[seat.replica_id])  # type: ignore[arg-type]
    used = world.utilisation(driver.placement)  # type: ignore[arg-type]
    carried = used[victim.replica_id] * victim.capacity
    victim.up = False
    placement = driver.health()
    assert victim.replica_id not in placement.members()
    assert {move.cause for move in placement.moves} <= set(REMOVED)
    assert sum(driver.causes.values()) <= 1.05 * max(carried, world.total() / replicas)


def test_a_rolling_restart_moves_every_replica_once_out_and_once_in() -> None:
    """Draining, ending and replacing each of 16 replicas in turn moves at most 2.1 times the load: once
    out, and once back in by balancing."""
    driver = settled(16)
    for seat in driver.world.seats:
        seat.leaving = True
        placement = driver.health()
        assert seat.replica_id not in placement.members(), "what leaves is emptied before it ends"
        seat.up = False
        driver.health()
        driver.world.restart(seat)
        driver.health()
        driver.regular()
    total = driver.world.total()
    assert sum(driver.causes.values()) <= 2.1 * total, driver.causes
    assert driver.causes[Cause.DRAIN] <= 1.2 * total, driver.causes


def test_scaling_out_and_in_is_attributed() -> None:
    """Four more replicas take their part through balancing within its budget; four that leave are emptied at once."""
    driver = settled(16)
    new = [driver.world.add_seat() for _ in range(4)]
    for _ in range(SETTLING_ROUNDS):
        driver.regular()
    assert driver.causes[Cause.REMOVAL] == driver.causes[Cause.DRAIN] == 0, driver.causes
    assert skew(driver) <= 1.3
    driver.causes.clear()
    for seat in new:
        seat.leaving = True
    placement = driver.health()
    assert not placement.members() & {seat.replica_id for seat in new}
    assert driver.causes[Cause.DRAIN] > 0
    assert driver.causes[Cause.BALANCE] == 0


def test_a_tenant_that_kills_replicas_does_not_walk_through_the_fleet() -> None:
    """A workload whose replicas crash one after the other is frozen after the second: it meets at most one fresh one,
    people are told, and the others' slices get new replicas as ever."""
    driver = settled(16)
    killer = tenant_keys("tenant-5")[0]
    assert driver.placement is not None
    met = {driver.placement.seats[each] for each in slice_at(driver.placement, killer).replica_ids}
    at_first = len(met)
    for turn in range(6):
        subset = list(slice_at(driver.placement, killer).replica_ids)
        victim = next((seat for seat in driver.world.seats if seat.up and seat.replica_id == subset[0]), None)
        if victim is not None:
            victim.up = False
            driver.health()
        driver.world.now_ms += 5_000
        driver.regular()
        if turn % 2:
            for seat in driver.world.seats:
                if not seat.up:
                    driver.world.restart(seat)
            driver.health()
        met |= {driver.placement.seats[each] for each in slice_at(driver.placement, killer).replica_ids}
    assert len(met) <= at_first + 2, met


def test_a_settled_fleet_is_left_alone() -> None:
    """With nothing new, a fleet that has settled is not touched any more: no two goals pull against each other."""
    for replicas, unequal in ((3, False), (16, True), (64, False)):
        driver = settled(replicas, unequal=unequal)
        before = driver.placement
        for _ in range(20):
            driver.regular()
        assert driver.placement == before, (replicas, unequal, driver.causes)


class _Wrapped:
    """An assigner with one mistake.

    Args:
        spoil: Makes it, from the view, the placement before and the round's.
    """

    def __init__(self, spoil: Callable[[View, Placement | None, Placement], Placement]) -> None:
        self._assigner = Assigner()
        self._spoil = spoil

    def round(self, view: View, previous: Placement | None, *, incarnation: int, now_ms: int, balance: bool) -> Round:
        done = self._assigner.round(view, previous, incarnation=incarnation, now_ms=now_ms, balance=balance)
        if done.placement is None:
            return done
        return replace(done, placement=self._spoil(view, previous, done.placement))


def first_slice(placement: Placement, **changes: object) -> Placement:
    """The placement with another first slice."""
    changed = replace(placement.slices[0], **changes)  # type: ignore[arg-type]  # test shorthand
    return replace(placement, slices=(changed, *placement.slices[1:]))


def drops_a_slice(_view: View, _old: Placement | None, new: Placement) -> Placement:
    return replace(new, slices=new.slices[1:])


def empties_a_slice(_view: View, _old: Placement | None, new: Placement) -> Placement:
    return first_slice(new, replica_ids=())


def keeps_the_dead(_view: View, old: Placement | None, new: Placement) -> Placement:
    return new if old is None else replace(new, slices=old.slices, seats=old.seats)


def stands_still(_view: View, old: Placement | None, new: Placement) -> Placement:
    return new if old is None else replace(new, generation=old.generation)


def runs_ahead(_view: View, _old: Placement | None, new: Placement) -> Placement:
    return replace(new, generation=Generation(new.generation.incarnation, new.generation.number + 1))


def shrinks_to_one(_view: View, _old: Placement | None, new: Placement) -> Placement:
    return replace(new, slices=tuple(replace(each, replica_ids=each.replica_ids[:1]) for each in new.slices))


def hides_moves(_view: View, _old: Placement | None, new: Placement) -> Placement:
    return replace(new, moves=())


def follows_the_input(view: View, _old: Placement | None, new: Placement) -> Placement:
    return replace(new, reason=view.servers[0].replica_id)


def moves_without_a_budget(_view: View, _old: Placement | None, new: Placement) -> Placement:
    return replace(new, moves=tuple(replace(each, cause=Cause.BALANCE) for each in new.moves))


@pytest.mark.parametrize(
    "spoil",
    [
        drops_a_slice,
        empties_a_slice,
        keeps_the_dead,
        stands_still,
        runs_ahead,
        shrinks_to_one,
        hides_moves,
        follows_the_input,
        moves_without_a_budget,
    ],
)
def test_the_checker_catches_an_assigner_with_a_mistake(
    spoil: Callable[[View, Placement | None, Placement], Placement],
) -> None:
    """Each of these mistakes is found within a few rounds, so the chaos above proves something."""
    make: Callable[[], Rounds] = lambda: _Wrapped(spoil)  # noqa: E731  # the driver makes two
    with pytest.raises(AssertionError):
        chaos(Driver(World(7, 8), make), 100)
