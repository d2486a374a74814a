from __future__ import annotations

from engines.agent.core.dispatches import LATE_MAX, ROUTERS_MAX, DispatchesSeen


def test_the_highest_number_of_each_router_counts() -> None:
    """Proves that duplicates, late ones and nonsense change nothing, and that routers do not mix."""
    seen = DispatchesSeen()
    for router, number in (("a", 1), ("a", 3), ("a", 2), ("a", 3), ("b", 70), ("b", 0), ("b", 6), ("", 9)):
        seen.receive(router, number)
    assert [seen.seen(router) for router in ("a", "b", "c", "")] == [3, 70, 0, 0]


def test_a_router_that_began_anew_counts_from_one() -> None:
    """Proves that the numbers of a router's earlier process do not outlive it, and that a late one does not pass for
    that."""
    seen = DispatchesSeen()
    seen.receive("a", 1_000)
    seen.receive("a", 1_000 - LATE_MAX)
    assert seen.seen("a") == 1_000
    seen.receive("a", 1)
    assert seen.seen("a") == 1
    seen.receive("a", 2)
    assert seen.seen("a") == 2


def test_memory_of_routers_is_bounded() -> None:
    """Proves that routers that are gone are forgotten, the ones not heard of for longest first."""
    seen = DispatchesSeen()
    for number in range(ROUTERS_MAX):
        seen.receive(f"r{number}", 5)
    seen.receive("r0", 6)
    seen.receive("new", 1)
    assert [seen.seen(name) for name in ("r0", "r1", "r2", "new")] == [6, 0, 5, 1]
