from __future__ import annotations

import pytest

from engines.agent.core.fair_line import AGEING, turn_s
from engines.agent.core.queue import AdmissionQueue, Offer, Priority, QueueLimits, Ticket
from model_units.units import MilliModelUnitsPerMinute

BATCH, INTERACTIVE, SYSTEM = Priority.BATCH, Priority.INTERACTIVE, Priority.SYSTEM


def ticket(name: str, priority: Priority = INTERACTIVE, kv_tokens: int = 10) -> Ticket:
    return Ticket(name, priority, kv_tokens)


def names(tickets: tuple[Ticket, ...]) -> list[str]:
    return [each.request_id for each in tickets]


def queue_of(*tickets: Ticket, queued_max: int = 100, sequences_max: int = 2, kv: int = 0) -> AdmissionQueue:
    queue = AdmissionQueue(QueueLimits(queued_max, sequences_max, kv))
    for each in tickets:
        assert queue.offer(each).accepted
    return queue


def test_classes_overtake_and_each_class_is_first_come_first_served() -> None:
    """Proves the order: system, interactive, batch; inside a class as they came."""
    queue = queue_of(
        ticket("b1", BATCH),
        ticket("i1"),
        ticket("b2", BATCH),
        ticket("i2"),
        ticket("s1", SYSTEM),
        sequences_max=6,
    )
    assert names(queue.admit()) == ["s1", "i1", "i2", "b1", "b2"]


def test_last_slot_is_kept_for_system() -> None:
    """Proves that a full engine still has a slot for a probe, and never two requests too many."""
    queue = queue_of(ticket("i1"), ticket("i2"), ticket("i3"), sequences_max=3)
    assert names(queue.admit()) == ["i1", "i2"]
    queue.offer(ticket("s1", SYSTEM))
    assert names(queue.admit()) == ["s1"]
    queue.offer(ticket("s2", SYSTEM))
    assert queue.admit() == ()
    queue.leave("i1")
    assert names(queue.admit()) == ["s2"]
    assert queue.inside == 3


def test_an_engine_with_one_slot_serves_everybody() -> None:
    """Proves that the kept slot does not shut ordinary requests out of an engine that has a single one."""
    queue = queue_of(ticket("i1"), sequences_max=1)
    assert names(queue.admit()) == ["i1"]


def test_cache_room_holds_back_the_line() -> None:
    """Proves that a long prompt waits for room, that nobody behind it slips past, and that a probe does."""
    queue = queue_of(ticket("a", kv_tokens=60), ticket("b", kv_tokens=60), ticket("c", kv_tokens=1), kv=100)
    queue.resize(QueueLimits(100, 10, 100))
    assert names(queue.admit()) == ["a"]
    queue.offer(ticket("probe", SYSTEM, kv_tokens=60))
    assert names(queue.admit()) == ["probe"]
    queue.leave("a")
    assert queue.admit() == ()
    queue.leave("probe")
    assert names(queue.admit()) == ["b", "c"]


def test_larger_than_the_cache_is_let_in_alone() -> None:
    """Proves that an over-estimated request is not stuck forever: the engine itself decides about it."""
    queue = queue_of(ticket("huge", kv_tokens=1_000), ticket("b"), sequences_max=4, kv=100)
    assert names(queue.admit()) == ["huge"]
    assert queue.admit() == ()
    queue.leave("huge")
    assert names(queue.admit()) == ["b"]


def test_full_queue_displaces_the_youngest_lower_class_or_refuses() -> None:
    """Proves the worked example: interactive displaces the youngest batch; batch is refused; system always enters."""
    queue = queue_of(queued_max=2, sequences_max=2)
    queue.offer(ticket("running"))
    queue.admit()
    for name in ("b1", "b2"):
        assert queue.offer(ticket(name, BATCH)) == Offer(accepted=True)
    assert queue.offer(ticket("i1")) == Offer(accepted=True, displaced=ticket("b2", BATCH))
    assert queue.offer(ticket("b3", BATCH)) == Offer(accepted=False)
    assert queue.offer(ticket("i2")) == Offer(accepted=True, displaced=ticket("b1", BATCH))
    assert queue.offer(ticket("i3")) == Offer(accepted=False)
    assert queue.offer(ticket("s1", SYSTEM)) == Offer(accepted=True)
    assert queue.waiting == 3


def test_without_a_queue_free_slots_are_still_used() -> None:
    """Proves that queued_max 0 means nobody waits, not that nobody is served."""
    queue = queue_of(queued_max=0, sequences_max=2)
    assert queue.offer(ticket("a")).accepted
    assert names(queue.admit()) == ["a"]
    assert not queue.offer(ticket("b")).accepted


def test_leaving_is_safe_anywhere_and_twice() -> None:
    """Proves that a request can leave while waiting or inside, once."""
    queue = queue_of(ticket("a"), ticket("b"))
    queue.admit()
    assert [queue.leave(name) for name in ("a", "b", "a", "never")] == [True, True, False, False]
    assert (queue.inside, queue.waiting, queue.admit()) == (0, 0, ())


def test_one_id_is_here_once() -> None:
    """Proves that an id that waits or is inside is refused as a defect of the caller."""
    queue = queue_of(ticket("a"), ticket("b"))
    queue.admit()
    for name in ("a", "b"):
        with pytest.raises(ValueError, match="already here"):
            queue.offer(ticket(name))


def of(tenant: str, name: str, priority: Priority = INTERACTIVE, *, weight: int = 60_000, prefill: int = 100) -> Ticket:
    return Ticket(name, priority, 10, tenant, weight, prefill, 0)


def test_tenants_take_turns_whatever_one_of_them_sends() -> None:
    """Proves that the second tenant's first request goes in second although a hundred came before it."""
    queue = queue_of(*(of("loud", f"l{number}") for number in range(100)), of("quiet", "q1"), of("quiet", "q2"))
    queue.resize(QueueLimits(100, 7))
    assert names(queue.admit()) == ["l0", "q1", "l1", "q2", "l2", "l3"]


def test_weights_decide_the_turns() -> None:
    """Proves that a tenant with three times the quota gets in three times as often."""
    queue = queue_of(
        *(of("small", f"s{number}", weight=10_000) for number in range(9)),
        *(of("large", f"l{number}", weight=30_000) for number in range(9)),
    )
    queue.resize(QueueLimits(100, 9))
    assert [name[0] for name in names(queue.admit())].count("l") == 6


def test_a_class_still_overtakes_whatever_the_tenants_had() -> None:
    """Proves that fairness is inside a class: interactive of the busiest tenant goes before anybody's batch."""
    queue = queue_of(of("quiet", "b1", BATCH), *(of("loud", f"i{number}") for number in range(3)), sequences_max=5)
    assert names(queue.admit()) == ["i0", "i1", "i2", "b1"]


def test_prefill_inside_is_limited_and_never_zero() -> None:
    """Proves that requests wait outside while enough prefill is inside, that there always is one whatever its size,
    that a first token makes room, and that a probe does not wait."""
    queue = AdmissionQueue(QueueLimits(100, 9, 0, prefill_milli_mu=250))
    for name, prefill in (("huge", 10_000), ("b", 100), ("c", 100), ("d", 100), ("e", 100)):
        assert queue.offer(of("t", name, prefill=prefill)).accepted
    assert names(queue.admit()) == ["huge"]
    queue.offer(of("", "probe", SYSTEM))
    assert names(queue.admit()) == ["probe"]
    assert queue.admit() == ()
    queue.started("huge")
    assert names(queue.admit()) == ["b", "c", "d"]
    queue.started("b")
    queue.started("b")
    assert names(queue.admit()) == ["e"]
    for name in ("huge", "b", "c", "d", "e", "probe"):
        assert queue.leave(name)
    assert queue.offer(of("t", "next")).accepted
    assert names(queue.admit()) == ["next"]


def test_who_ended_without_a_token_makes_room() -> None:
    """Proves that a cancelled prompt does not hold others up for ever."""
    queue = AdmissionQueue(QueueLimits(100, 9, 0, prefill_milli_mu=250))
    queue.offer(of("t", "a", prefill=300))
    queue.offer(of("t", "b", prefill=300))
    assert names(queue.admit()) == ["a"]
    queue.leave("a")
    assert names(queue.admit()) == ["b"]


def test_who_waits_for_room_is_not_overtaken_by_newcomers() -> None:
    """Proves that a long prompt at the head keeps its place although tenants come that are further behind."""
    queue = queue_of(ticket("inside", kv_tokens=60), sequences_max=9, kv=100)
    queue.admit()
    queue.offer(Ticket("long", INTERACTIVE, 80, "a", 1_000, 1_000, 0))
    assert queue.admit() == ()
    queue.offer(Ticket("short", INTERACTIVE, 10, "b", 1_000, 10, 0))
    queue.offer(Ticket("nightly", BATCH, 10, "b", 1_000, 10, 0))
    assert queue.admit() == ()
    queue.leave("inside")
    assert names(queue.admit()) == ["long", "short", "nightly"]


def test_an_aggressor_does_not_push_others_out_of_the_queue() -> None:
    """Proves that a full queue takes from the tenant furthest above its fair part, and that nobody displaces back."""
    queue = queue_of(ticket("running", kv_tokens=0), queued_max=6, sequences_max=2)
    queue.admit()
    for number in range(6):
        assert queue.offer(of("loud", f"l{number}")).accepted
    assert queue.offer(of("loud", "l6")) == Offer(accepted=False)
    for number, gone in enumerate(("l5", "l4", "l3")):
        assert queue.offer(of("quiet", f"q{number}")) == Offer(accepted=True, displaced=of("loud", gone))
    assert queue.offer(of("quiet", "q3")) == Offer(accepted=False)
    assert queue.offer(of("loud", "l7")) == Offer(accepted=False)
    assert queue.offer(of("third", "t0", weight=1)).accepted, "everybody may have one"


def test_a_long_queue_of_many_tenants_costs_logarithmically() -> None:
    """Proves that a full queue with hundreds of tenants and thousands of requests works through them in turns, with a
    state that does not outgrow them."""
    queue = AdmissionQueue(QueueLimits(4_000, 2))
    for number in range(8_000):
        queue.offer(of(f"t{number % 400}", f"r{number}"))
    assert queue.waiting == 4_000
    seen: list[str] = []
    while queue.waiting:
        (admitted,) = queue.admit()
        seen.append(admitted.tenant_id)
        queue.leave(admitted.request_id)
    assert all(len(set(seen[start : start + 400])) == 400 for start in range(0, 4_000, 400))


def test_a_burst_leaves_half_of_the_prefill_to_who_comes() -> None:
    """Proves that a tenant alone may fill the limit, and that where others are here it stops at half of it."""
    queue = AdmissionQueue(QueueLimits(100, 9, 0, prefill_milli_mu=400))
    for number in range(3):
        queue.offer(of("loud", f"l{number}"))
    assert names(queue.admit()) == ["l0", "l1", "l2"]
    queue.offer(of("quiet", "q0"))
    queue.offer(of("loud", "l3"))
    assert names(queue.admit()) == ["q0"]
    queue.started("l0")
    assert queue.admit() == (), "two hundred of its own are inside"
    queue.started("l1")
    assert names(queue.admit()) == ["l3"]
    queue.started("l2")
    queue.started("l3")
    queue.leave("q0")
    for number in range(4, 8):
        queue.offer(of("loud", f"l{number}"))
    assert len(queue.admit()) == 4, "alone again"


CAPACITY = MilliModelUnitsPerMinute(60_000)


def at(arrival_s: float, name: str, prefill_s: float, tenant: str = "t") -> Ticket:
    prefill = round(prefill_s * 1_000)
    return Ticket(name, INTERACTIVE, 10, tenant, 60_000, prefill, 0, turn_s(arrival_s, prefill, CAPACITY))


def test_inside_a_tenant_the_shortest_prompt_is_first() -> None:
    """Proves the order within a tenant: by prefill, as they came where it is equal, and waiting weighs in."""
    queue = queue_of(
        at(0.0, "old", 1.0),
        at(AGEING / 2, "long", 1.0),
        at(AGEING / 2, "short", 0.1),
        at(AGEING / 2, "short too", 0.1),
        at(AGEING, "late", 0.1),
        sequences_max=6,
    )
    assert names(queue.admit()) == ["short", "short too", "old", "late", "long"]


def test_the_shortest_prompt_of_one_tenant_does_not_overtake_another_tenant() -> None:
    """Proves that length decides inside a tenant only: between tenants it is still who was served least."""
    queue = queue_of(*(at(0.0, f"l{number}", 0.001, "loud") for number in range(4)), at(1.0, "q", 5.0, "quiet"))
    queue.resize(QueueLimits(100, 4))
    assert names(queue.admit()) == ["l0", "q", "l1"]


def test_a_long_prompt_does_not_starve() -> None:
    """Proves the bound: with short prompts coming faster than they are served, a long one is let in after what came
    within AGEING times its prefill, and without ageing it never would be."""
    prefill_s, step_s = 3.0, 0.1

    def served_before(ageing: bool) -> int:
        queue = AdmissionQueue(QueueLimits(10_000, 2))
        queue.offer(at(0.0, "long", prefill_s))
        for number in range(2_000):
            for twin in "ab":
                arrival_s = number * step_s if ageing else 0.0
                queue.offer(at(arrival_s, f"s{number}{twin}", 0.01))
            (admitted,) = queue.admit()
            if admitted.request_id == "long":
                return number
            queue.leave(admitted.request_id)
        return -1

    came_within = AGEING * (prefill_s - 0.01) / step_s
    assert 0 < served_before(ageing=True) <= 2 * came_within + 2
    assert served_before(ageing=False) == -1


def test_who_waits_for_room_is_not_overtaken_by_a_shorter_prompt_of_its_tenant() -> None:
    """Proves that a head that waits for room in the cache stays the head of its tenant too."""
    queue = queue_of(ticket("inside", kv_tokens=60), sequences_max=9, kv=100)
    queue.admit()
    queue.offer(Ticket("long", INTERACTIVE, 80, "a", 1_000, 1_000, 0, turn_s=50.0))
    assert queue.admit() == ()
    queue.offer(Ticket("short", INTERACTIVE, 10, "a", 1_000, 10, 0, turn_s=1.0))
    assert queue.admit() == ()
    queue.leave("inside")
    assert names(queue.admit()) == ["long", "short"]


def test_a_line_that_is_left_and_joined_again_stays_small() -> None:
    """Proves that requests that leave before their turn do not pile up, and that an id may come again."""
    queue = queue_of(at(0.0, "running", 0.0), queued_max=10, sequences_max=2)
    queue.admit()
    queue.offer(at(0.0, "stays", 0.0))
    for number in range(1_000):
        queue.offer(at(1.0 + number, "again", 1.0))
        queue.leave("again")
    line = queue._lines[INTERACTIVE]._tenants["t"]
    assert len(line._turns) <= 2 * 2 + 16 + 1
    queue.offer(at(0.0, "again", 0.0))
    queue.leave("running")
    assert names(queue.admit()) == ["stays"]
    queue.leave("stays")
    assert names(queue.admit()) == ["again"]
