"""The sharder's rounds."""

from __future__ import annotations

import copy
import functools
import random
from collections import Counter
from itertools import combinations

from common.shard_map import tenant_keys
from control_plane.core.sharding.assigner import Assigner
from control_plane.core.sharding.values import Cause, KeyLoad, Life, Server, View
from model_units.units import MilliModelUnitsPerMinute as Rate
from tests.unit.control_plane.sharding_lab import ROUND_MS, C, Lab, fleet, serving, subset, zipf


def reserved_lab(replicas: int = 16, tenants: int = 64, load: float = 0.65) -> Lab:
    rates = zipf(tenants, load * replicas * C)
    return Lab(fleet(replicas), rates, {tenant_id: Rate(rate) for tenant_id, rate in rates.items()})


@functools.cache
def _settled() -> Lab:
    lab = reserved_lab()
    lab.settle()
    return lab


def settled_lab() -> Lab:
    """The usual fleet once nothing moves any more; every test has its own."""
    return copy.deepcopy(_settled())


def test_first_placement_covers_everything() -> None:
    """Proves shape: slices over the whole key space, subsets of three and more, the epoch as incarnation."""
    lab = reserved_lab()
    placement = lab.settle(1)
    assert placement.generation.incarnation == 7
    assert placement.slices[0].first_key == 0
    keys = [each.first_key for each in placement.slices]
    assert keys == sorted(set(keys))
    assert all(len(each.replica_ids) >= 3 for each in placement.slices)
    assert placement.members() == {server.replica_id for server in lab.servers}
    assert serving(placement, (1 << 64) - 1)


def test_nobody_there() -> None:
    """Proves that an empty view changes nothing: it is not "everyone is dead"."""
    lab = reserved_lab()
    lab.settle(2)
    lab.servers = []
    assert lab.round().placement is None
    assert Lab([], {"t": 1}).round().placement is None


def test_nothing_known_of_tenants() -> None:
    """Proves that a model without tenants has one slice for whoever comes, on three replicas."""
    lab = Lab(fleet(8), {})
    placement = lab.settle(3)
    assert len(placement.slices) == 1
    assert len(placement.slices[0].replica_ids) == 3


def test_the_same_view_changes_nothing_whatever_its_order() -> None:
    """Proves determinism, and that a round is a fixed point."""
    lab = settled_lab()
    assert lab.round(loads=lab.loads()).placement is None
    other = Lab(lab.servers[::-1], dict(reversed(lab.rates.items())), dict(reversed(lab.reserved.items())))
    first = reserved_lab()
    random.Random(3).shuffle(other.servers)
    assert first.settle(3).slices == other.settle(3).slices


def test_utilisation_is_even_on_unequal_hardware() -> None:
    """Proves that it is utilisation that is evened out, not load."""
    lab = reserved_lab()
    lab.servers = [
        Server(each.replica_id, each.seat, Rate(each.capacity * (1, 2, 4)[at % 3]))
        for at, each in enumerate(lab.servers)
    ]
    lab.settle()
    assert lab.evenness() <= 1.2


def test_tenants_share_little() -> None:
    """Proves the blast radius: a median tenant on a fifth of the fleet, and no two small subsets alike."""
    lab = settled_lab()
    placement = lab.placement
    assert placement is not None
    sizes = sorted(len(subset(placement, tenant_id)) for tenant_id in lab.rates)
    assert sizes[len(sizes) // 2] <= 0.2 * len(lab.servers)
    small = [set(each.replica_ids) for each in placement.slices if len(each.replica_ids) == 3]
    assert all(a != b for a, b in combinations(small, 2))


def test_loss_moves_only_what_was_lost() -> None:
    """Proves that losing one of 16 moves no more than its own part, at once and in a round that does not balance."""
    lab = settled_lab()
    before = lab.placement
    assert before is not None
    lab.lose("r004")
    made = lab.round(balance=False)
    assert made.placement is not None
    assert "r004" not in made.placement.members()
    for old, new in zip(before.slices, made.placement.slices, strict=True):
        assert set(old.replica_ids) - {"r004"} <= set(new.replica_ids)
    assert set(lab.churn) == {Cause.REMOVAL}
    assert lab.churn.total() <= 1.05 / 16 * 1.2  # the lost one was up to a fifth above the mean


def test_drain_moves_before_the_exit() -> None:
    """Proves that a draining replica is named no more while it still serves, and that it is no crash."""
    lab = settled_lab()
    lab.drain("r004")
    made = lab.round(balance=False)
    assert made.placement is not None
    assert "r004" not in made.placement.members()
    assert set(lab.churn) == {Cause.DRAIN}
    lab.lose("r004")
    assert lab.round(balance=False).placement is None


def test_everybody_drains() -> None:
    """Proves that those who leave serve on as long as nobody else is there."""
    lab = Lab([Server("a", "1", Rate(C), Life.LEAVING), Server("b", "2", Rate(C), Life.LEAVING)], {"t": 10})
    placement = lab.settle(2)
    assert placement.members() == {"a", "b"}
    lab.come("c", "3")
    assert lab.settle(1).members() == {"c"}


def test_a_replacement_takes_its_seat() -> None:
    """Proves that a replica that is restarted in its seat before anybody acted serves what its predecessor did."""
    lab = settled_lab()
    before = lab.placement
    assert before is not None
    lab.lose("r004")
    lab.come("r900", "seat-004")
    made = lab.round(balance=False)
    assert made.placement is not None
    for old, new in zip(before.slices, made.placement.slices, strict=True):
        assert {"r900" if each == "r004" else each for each in old.replica_ids} == set(new.replica_ids)


def test_rolling_restart() -> None:
    """Proves the churn of restarting all of 16 one after the other: away and back, little more, and even in the end."""
    lab = reserved_lab()
    lab.settle()
    for at in range(16):
        lab.drain(f"r{at:03}")
        lab.round(balance=False)
        lab.lose(f"r{at:03}")
        lab.come(f"x{at:03}", f"seat-{at:03}")
        for _ in range(4):
            lab.round()
    assert lab.churn.total() <= 2.4
    assert lab.evenness() <= 1.2


def test_a_new_replica_is_fed() -> None:
    """Proves that an empty replica gets load although nobody is outside the band."""
    lab = settled_lab()
    lab.come("r900", "seat-900")
    for _ in range(6):
        lab.round()
    assert lab.placement is not None
    assert "r900" in lab.placement.members()
    assert lab.evenness() <= 1.2


def test_noise_moves_next_to_nothing() -> None:
    """Proves that 20 % noise of every tenant's load moves less than 1 % of the load per round."""
    lab, noise = settled_lab(), random.Random(1)
    true = dict(lab.rates)
    for _ in range(40):
        lab.rates = {tenant_id: round(rate * noise.uniform(0.8, 1.2)) for tenant_id, rate in true.items()}
        lab.round()
    assert lab.churn[Cause.BALANCE] + lab.churn[Cause.OVERLAP] < 0.01 * 40


def test_a_shift_is_evened_out() -> None:
    """Proves that a tenant that triples is spread in 90 s, within a budget per round."""
    lab = settled_lab()
    lab.rates["t3"] *= 3
    for _ in range(6):
        before = lab.churn[Cause.BALANCE] + lab.churn[Cause.OVERLAP]
        lab.round()
        assert lab.churn[Cause.BALANCE] + lab.churn[Cause.OVERLAP] - before <= 0.15 + 1e-6
    assert lab.evenness() <= 1.2


def test_warm_caches_hold_slices_back() -> None:
    """Proves that a move that loses more warm tokens than evenness is worth is not made."""
    cold, warm = reserved_lab(), reserved_lab()
    warm.warm_per_rate, warm.token_milli_mu = 10.0, 1e6
    for lab in (cold, warm):
        lab.settle()
        for tenant_id in ("t5", "t6", "t7"):
            lab.rates[tenant_id] *= 2
        for _ in range(6):
            lab.round()
    assert cold.churn[Cause.BALANCE] > 0
    assert warm.churn[Cause.BALANCE] == 0


def test_growth_is_at_once_and_shrinking_takes_its_time() -> None:
    """Proves the hysteresis: a slice grows in the first round, and gives up half of the surplus after five minutes."""
    lab = Lab(fleet(16), {"t": round(2.4 * C)})
    placement = lab.settle(2)
    assert len(subset(placement, "t")) == 5
    lab.rates["t"] = round(0.4 * C)
    rounds = 0
    while len(subset(placement, "t")) == 5:
        placement = lab.round().placement or placement
        rounds += 1
        assert rounds < 60
    assert rounds * ROUND_MS >= 300_000
    assert len(subset(placement, "t")) == 4


def test_a_surge_past_the_fleet_takes_a_part_of_it() -> None:
    """Proves the blast radius of a tenant that sends many times what it has reserved while others are busy."""
    lab = settled_lab()
    lab.rates["t30"] = 30 * C
    for _ in range(8):
        lab.round()
    assert lab.placement is not None
    assert len(subset(lab.placement, "t30")) <= 0.25 * len(lab.servers)


def test_a_hot_tenant_is_cut_and_joined_again() -> None:
    """Proves that splitting moves nothing, that every slice ends small, and that quiet ones become one again."""
    lab = Lab(fleet(64), {"hot": 20 * C, "cool": C // 10})
    first, end = tenant_keys("hot")

    def slices() -> int:
        assert lab.placement is not None
        return sum(first <= each.first_key < end for each in lab.placement.slices)

    lab.round()
    lab.round()
    assert slices() >= 3
    for _ in range(100):
        lab.round()
    assert lab.placement is not None
    assert all(len(each.replica_ids) <= 20 for each in lab.placement.slices)
    assert lab.evenness() <= 3.0
    lab.rates["hot"] = C // 10
    for _ in range(20):
        lab.round()
    assert slices() <= 1


def crash_with(lab: Lab, tenant_ids: set[str]) -> tuple[str, list[str]]:
    """Crashes the replica that serves most of some tenants, and only they had requests in flight."""
    assert lab.placement is not None
    counts = Counter(replica_id for tenant_id in tenant_ids for replica_id in subset(lab.placement, tenant_id))
    victim = max(sorted(counts), key=counts.__getitem__)
    loads = {
        replica_id: [
            KeyLoad(each.first_key, each.rate, 0, int(each.tenant_id in tenant_ids), each.tenant_id) for each in parts
        ]
        for replica_id, parts in lab.loads().items()
    }
    lab.round(balance=False, loads=loads)
    lab.lose(victim)
    made = lab.round(balance=False, loads={key: value for key, value in loads.items() if key != victim})
    return victim, [each.kind for each in made.happened]


def test_key_of_death() -> None:
    """Proves that a workload that was on two crashed replicas gets no third one but its own seats back; others do."""
    lab = settled_lab()
    assert lab.placement is not None
    home = subset(lab.placement, "t40")
    one, happened = crash_with(lab, {"t40"})
    assert not happened
    assert len(subset(lab.placement, "t40")) == 3  # replaced: one crash proves nothing
    second, happened = crash_with(lab, {"t40"})
    assert happened == ["KEY_OF_DEATH"]
    left = subset(lab.placement, "t40")
    assert len(left) == 2
    assert second not in left
    lab.round()
    assert subset(lab.placement, "t40") == left
    lab.come("r900", f"seat-{second[1:]}")
    lab.round(balance=False)
    assert subset(lab.placement, "t40") == left | {"r900"}
    lab.now_ms += 600_000
    lab.round()
    assert all(not each.frozen_until_ms for each in lab.placement.slices)
    assert one in home


def test_machines_that_fail_are_no_key_of_death() -> None:
    """Proves that two crashes that had most of the load in common freeze nobody."""
    lab = Lab(fleet(4), zipf(6, 2 * C))
    lab.settle()
    everybody = set(lab.rates)
    assert not crash_with(lab, everybody)[1]
    assert not crash_with(lab, everybody)[1]
    assert lab.placement is not None
    assert all(not each.frozen_until_ms for each in lab.placement.slices)


def test_nonsense_reports() -> None:
    """Proves that absurd, negative and unknown reports, capacity 0 and clocks that go back break no promise."""
    lab = reserved_lab(replicas=6, tenants=10)
    lab.settle()
    lab.servers[0] = Server("r000", "seat-000", Rate(0))
    lab.now_ms -= 86_400_000
    nonsense = {
        "r000": [KeyLoad(0, 10**15, 10**12, 1, "nobody"), KeyLoad((1 << 64) - 1, -5, -5, -5)],
        "unknown": [KeyLoad(3, 10**9)],
        "r001": [],
    }
    for _ in range(5):
        lab.round(loads=nonsense)
        assert lab.placement is not None
        assert all(each.replica_ids for each in lab.placement.slices)
        assert lab.placement.members() <= {server.replica_id for server in lab.servers}
    assert max(each.load for each in lab.placement.slices) <= 21 * C


def test_a_silent_replica_does_not_empty_its_slices() -> None:
    """Proves that load is not believed gone the moment its replica stops reporting."""
    lab = settled_lab()
    loads = lab.loads()
    del loads["r003"]
    heat = sum(lab.round(loads=loads).slice_loads.values())
    assert heat >= 0.97 * sum(lab.rates.values())


def test_a_fleet_that_wakes_up_on_few_replicas_spreads_at_once() -> None:
    """Proves that replicas of which more is asked than they serve are relieved whatever it costs."""
    for reserved in (True, False):
        rates = zipf(40, 16 * C)
        lab = Lab(fleet(3), rates, {tenant_id: Rate(rate) for tenant_id, rate in rates.items()} if reserved else {})
        lab.round(balance=False)
        lab.round(balance=False)
        lab.servers = fleet(32)
        for _ in range(6):
            lab.round()
        assert lab.evenness() <= 1.5


def test_tenants_that_slept_wake_up_apart() -> None:
    """Proves that a tenant without traffic keeps its slice, so that a morning does not put everybody everywhere."""
    lab = Lab(fleet(16), zipf(48, 8 * C))
    lab.settle()
    rates = dict(lab.rates)
    lab.rates = {tenant_id: rate if tenant_id in ("t0", "t1") else 0 for tenant_id, rate in rates.items()}
    for _ in range(40):
        lab.round()
    lab.rates = rates
    lab.round()
    assert lab.placement is not None
    sizes = sorted(len(subset(lab.placement, tenant_id)) for tenant_id in rates)
    assert sizes[len(sizes) // 2] <= 3


def test_a_tenant_that_comes_is_not_its_neighbour() -> None:
    """Proves that a new tenant with traffic does not keep the replicas of the slice its keys lay in, nor its freeze."""
    lab = Lab(fleet(32), {"hot": 8 * C})
    lab.settle()
    lab.rates["new"] = C // 10
    lab.round()
    lab.round()
    assert lab.placement is not None
    assert len(subset(lab.placement, "new")) == 3


def test_more_tenants_than_combinations() -> None:
    """Proves that a round stays quick to settle where subsets must repeat."""
    lab = Lab(fleet(8), dict.fromkeys((f"t{at}" for at in range(200)), C // 60))
    lab.settle(6)
    assert lab.evenness() <= 1.2


def test_computation_at_512() -> None:
    """Proves that a fleet of 512 with 2,000 tenants is assigned whole: every slice, and evenly."""
    lab = reserved_lab(replicas=512, tenants=2_000)
    placement = (
        Assigner()
        .round(View(lab.servers, lab.reserved), None, incarnation=1, now_ms=lab.now_ms, balance=True)
        .placement
    )
    assert placement is not None
    assert len(placement.slices) >= 2_000
    lab.placement = placement
    assert lab.evenness() <= 1.3
