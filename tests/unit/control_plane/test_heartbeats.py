"""Who is taken for dead."""

from __future__ import annotations

from common.clock import NS_PER_S
from control_plane.core.heartbeats import BLIND_SHARE, SILENT_S, Heartbeats

LATER_NS = round((SILENT_S + 1) * NS_PER_S)


def heard(*replica_ids: str) -> Heartbeats:
    beats = Heartbeats()
    for replica_id in replica_ids:
        beats.heard(replica_id, 0)
    return beats


def test_silence_is_death_after_a_while() -> None:
    """Proves that a pause counts only when three reports are missing, and that a report ends it."""
    beats = heard("a", "b", "c")
    for replica_id in ("b", "c"):
        beats.heard(replica_id, LATER_NS)
    assert beats.dead(round(SILENT_S * NS_PER_S)) == set()
    assert beats.dead(LATER_NS) == {"a"}
    beats.heard("a", LATER_NS)
    assert beats.dead(LATER_NS) == set()


def test_a_refused_connection_is_death_at_once() -> None:
    """Proves that nobody waits for a replica whose port is closed, and that one that was never heard is not judged."""
    beats = heard("a", "b")
    beats.gone("a")
    beats.gone("never-heard")
    assert beats.dead(0) == {"a"}


def test_many_deaths_at_once_are_not_believed() -> None:
    """Proves that half of the fleet may die, but more than half is a broken view; and that it is exactly there."""
    beats = heard("a", "b", "c", "d")
    for replica_id in "ab":
        beats.gone(replica_id)
    assert beats.dead(0) == {"a", "b"}, BLIND_SHARE
    beats.gone("c")
    assert beats.dead(0) == set()
    assert beats.silent(0) == {"a", "b", "c"}
    assert beats.dead(LATER_NS) == set(), "a view that is cut off stays cut off however long it lasts"


def test_who_is_not_registered_is_forgotten() -> None:
    """Proves that replicas of the past neither count as dead nor as heard."""
    beats = heard("a", "b", "c")
    beats.gone("a")
    beats.keep(["b"])
    assert beats.heard_count == 1
    assert beats.silent(0) == set()
