"""Doubt about a sudden collapse of live capacity."""

from __future__ import annotations

from capacity.core.caution import DOUBT_NS, Caution
from common.clock import NS_PER_S, MonotonicNs


def at(seconds: float) -> MonotonicNs:
    return MonotonicNs(round(seconds * NS_PER_S))


def test_ordinary_changes_are_believed_at_once() -> None:
    """Proves that growth and the loss of one of two replicas count without delay."""
    caution = Caution(at(0))
    assert not caution.doubts("m", 200, 100, at(1))
    assert not caution.doubts("m", 50, 100, at(2))


def test_collapse_is_doubted_for_a_few_seconds_only() -> None:
    """Proves that a fall below half stands back for the doubt's time, and is believed after it."""
    caution = Caution(at(0))
    assert caution.doubts("m", 0, 100, at(5))
    assert caution.doubts("m", 0, 100, MonotonicNs(at(5) + DOUBT_NS - 1))
    assert not caution.doubts("m", 0, 100, MonotonicNs(at(5) + DOUBT_NS))


def test_takeover_extends_the_doubt() -> None:
    """Proves that right after a takeover an empty view is doubted until the caution ends."""
    caution = Caution(at(10))
    assert caution.doubts("m", 0, 100, at(0))
    assert caution.doubts("m", 0, 100, at(9.9))
    assert not caution.doubts("m", 0, 100, at(10))


def test_recovery_resets_the_doubt() -> None:
    """Proves that each collapse has its own time, per model."""
    caution = Caution(at(0))
    assert caution.doubts("m", 0, 100, at(1))
    assert not caution.doubts("m", 100, 100, at(2))
    assert caution.doubts("m", 0, 100, at(5))
    assert caution.doubts("n", 0, 100, at(7))


def test_nothing_granted_is_nothing_to_doubt() -> None:
    """Proves that a model that never had capacity is written as it is."""
    assert not Caution(at(10)).doubts("m", 0, 0, at(0))


def test_the_next_end_is_that_of_the_doubt_that_ends_first() -> None:
    """Proves that a round can be made the moment any doubt ends, and that none is waited for when there is none."""
    caution = Caution(at(0))
    assert caution.next_end(at(0)) is None
    caution.doubts("m", 0, 100, at(1))
    caution.doubts("n", 0, 100, at(2))
    assert caution.next_end(at(2)) == at(1) + DOUBT_NS
    assert caution.next_end(MonotonicNs(at(1) + DOUBT_NS)) == at(2) + DOUBT_NS
    caution.doubts("n", 100, 100, at(3))
    assert caution.next_end(MonotonicNs(at(1) + DOUBT_NS)) is None
    taken_over = Caution(at(10))
    taken_over.doubts("m", 0, 100, at(1))
    assert taken_over.next_end(at(1)) == at(10)
