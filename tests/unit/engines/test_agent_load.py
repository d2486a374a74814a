from __future__ import annotations

import pytest

from engines.agent.core.load import Load, LoadAccount, UtilizationWindow
from model_units.units import MilliModelUnits, MilliModelUnitsPerMinute


def load(queued: int, prefill: int, running: int, decode: int) -> Load:
    return Load(queued, MilliModelUnits(prefill), running, MilliModelUnits(decode))


def test_the_life_of_a_request() -> None:
    """Proves each stage: prefill is pending until the first token, decode counts only inside and shrinks per token."""
    account = LoadAccount()
    account.queue("a", prefill_milli_mu=100, decode_milli_mu=50, output_tokens=10)
    assert account.load() == load(1, 100, 0, 0)
    account.start("a")
    assert account.load() == load(0, 100, 1, 50)
    assert account.produce("a", 1) == 105
    assert account.load() == load(0, 0, 1, 45)
    assert account.produce("a", 4) == 20
    assert account.load() == load(0, 0, 1, 25)
    account.end("a")
    assert account.load() == load(0, 0, 0, 0)


def test_outrunning_the_estimate_leaves_no_negative_decode() -> None:
    """Proves that a stream longer than expected has nothing left, yet its further tokens count as served work."""
    account = LoadAccount()
    account.queue("a", prefill_milli_mu=0, decode_milli_mu=10, output_tokens=5)
    account.start("a")
    assert account.produce("a", 5) == 10
    assert account.produce("a", 5) == 10
    assert account.load() == load(0, 0, 1, 0)
    account.end("a")
    assert account.load() == load(0, 0, 0, 0)


def test_absurd_prices_do_no_harm() -> None:
    """Proves that negative prices and zero lengths from a broken router are taken as nothing."""
    account = LoadAccount()
    account.queue("a", prefill_milli_mu=-5, decode_milli_mu=-5, output_tokens=0)
    account.start("a")
    assert account.produce("a", 0) == 0
    assert account.produce("a", 3) == 0
    assert account.load() == load(0, 0, 1, 0)


def test_ending_twice_and_double_ids() -> None:
    """Proves that an end counts once and that an id cannot be counted twice."""
    account = LoadAccount()
    account.queue("a", prefill_milli_mu=7, decode_milli_mu=7, output_tokens=7)
    with pytest.raises(ValueError, match="already counted"):
        account.queue("a", prefill_milli_mu=7, decode_milli_mu=7, output_tokens=7)
    account.end("a")
    account.end("a")
    assert account.load() == load(0, 0, 0, 0)


def test_utilization_is_work_over_capacity_and_forgets() -> None:
    """Proves that full load reads 1, half of it .5, and that an idle window reads exactly 0."""
    window = UtilizationWindow(MilliModelUnitsPerMinute(60_000), window_s=10.0)
    for tenth in range(100):
        window.add(100.0, tenth / 10)
    assert window.utilization(9.9) == pytest.approx(1.0)
    assert window.utilization(14.9) == pytest.approx(0.5, abs=0.01)
    assert window.utilization(100.0) == 0.0


@pytest.mark.parametrize(("capacity", "window_s"), [(0, 1.0), (1, 0.0)])
def test_utilization_needs_a_capacity_and_a_window(capacity: int, window_s: float) -> None:
    """Proves that a division by zero is refused where it is made."""
    with pytest.raises(ValueError, match="above 0"):
        UtilizationWindow(MilliModelUnitsPerMinute(capacity), window_s)
