from __future__ import annotations

import pytest

from engines.agent.core.queue import AdmissionQueue, Offer, Priority, QueueLimits, Ticket

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
