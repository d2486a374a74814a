"""The parts the sharder's rounds are made of."""

from __future__ import annotations

from common.shard_map import tenant_keys
from control_plane.core.sharding.cuts import Cut, cut
from control_plane.core.sharding.demand import DemandBook
from control_plane.core.sharding.sizes import limit, shrunk, size
from control_plane.core.sharding.storm import StormWait
from control_plane.core.sharding.values import KeyLoad, View
from tests.unit.control_plane.sharding_lab import C, fleet


def test_size_is_the_load_over_half_a_replica_within_bounds() -> None:
    """Proves clamp(ceil(load / (0.5 C)), 3, all): the worked example, the lower bound and the upper one."""
    assert size(3 * C, C, 16) == 6
    assert size(3 * C + 1, C, 16) == 7
    assert size(1, C, 16) == 3
    assert size(10**9, C, 16) == 16
    assert size(0, C, 2) == 2


def test_shrinking_goes_half_of_the_way_and_leaves_slack() -> None:
    """Proves the step and that a load near the border gives nothing up."""
    assert shrunk(10, 0, C, 16) == 6
    assert shrunk(4, 0, C, 16) == 3
    assert shrunk(3, 0, C, 16) == 3
    assert shrunk(7, 3 * C, C, 16) == 7
    assert shrunk(9, 3 * C, C, 16) == 8


def test_a_surge_grows_only_into_what_the_others_leave() -> None:
    """Proves the limit: a fifth of a busy fleet, what was reserved, or all that others do not need."""
    assert limit(0, 8 * C, C, 16) == 4
    assert limit(4 * C, 8 * C, C, 16) == 8
    assert limit(0, 3 * C, C, 16) == 10
    assert limit(0, 0, C, 16) == 16
    assert limit(0, 10**9, C, 2) == 2


def test_cuts_are_where_tenants_begin() -> None:
    """Proves one slice per tenant, the first at 0, in the order of their keys."""
    names = sorted(("a", "b", "c"), key=lambda name: tenant_keys(name)[0])
    cuts = cut(DemandBook().read(View(fleet(3)), 0), dict.fromkeys(names, 0), [], lambda load: size(load, C, 16))
    assert [each.tenant_id for each in cuts] == names
    assert [each.first_key for each in cuts] == [0, *(tenant_keys(name)[0] for name in names[1:])]
    assert cut(DemandBook().read(View([]), 0), {}, [], lambda load: 3) == [Cut(0, "")]


def test_too_many_tenants_share_slices_the_coldest_first() -> None:
    """Proves that the number of slices is bounded and that it is heavy tenants that keep one of their own."""
    reserved = {f"t{at}": at for at in range(50)}
    cuts = cut(DemandBook().read(View(fleet(3)), 0), reserved, [], lambda load: 3, slices_max=10)
    assert len(cuts) <= 10
    assert tenant_keys("t49")[0] in {each.first_key for each in cuts}
    assert any(not each.tenant_id for each in cuts)


def test_demand_falls_no_faster_than_averages_do() -> None:
    """Proves the half-life of what a replica said before it fell silent, and that it ends."""
    book = DemandBook()
    servers = fleet(2)
    loads = {"r000": [KeyLoad(0, 1_000)], "r001": [KeyLoad(0, 500)]}
    assert book.read(View(servers, {}, loads), 0).load(0, 1) == 1_500
    assert book.read(View(servers, {}, {"r000": loads["r000"]}), 20_000).load(0, 1) == 1_250
    assert book.read(View(servers), 40_000).load(0, 1) == 625
    assert book.read(View(servers), 10_000_000).load(0, 1) == 0


def test_storm_wait() -> None:
    """Proves that losses are collected for a second, ten where most of the fleet is lost at once, and then acted on."""
    second = 1_000_000_000
    storm = StormWait(second)
    assert storm.remaining_ns(0.0, 0) == 0
    assert storm.remaining_ns(0.1, 0) == second
    assert storm.remaining_ns(0.1, second // 2) == second // 2
    assert storm.remaining_ns(0.1, second) == 0
    assert storm.remaining_ns(0.6, 5 * second) == 10 * second
    assert storm.remaining_ns(0.6, 15 * second) == 0
