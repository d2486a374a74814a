"""The simulator drives the agent's fair queue; the isolation benchmark sees when it is gone."""

from __future__ import annotations

from benchmarks.quota.isolation import PRODUCT, WITHOUT, Attack, compare


def test_isolation_holds_and_its_measurement_can_fail() -> None:
    """With quota and fair queueing an aggressor's pulses leave the worst tenant within a few times its calm time to
    first token; first come first served lets it grow several times as much."""
    fair = compare(1, PRODUCT, 70.0)
    first_come = compare(1, WITHOUT[0], 70.0)
    assert fair[Attack.STEADY].ratio < 1.2
    assert 2 * fair[Attack.PULSES].worst_ratio < first_come[Attack.PULSES].worst_ratio
