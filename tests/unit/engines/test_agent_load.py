from __future__ import annotations

import pytest

from engines.agent.core.load import PRICE_MAX, Load, LoadAccount, UtilizationWindow
from model_units.units import MilliModelUnits, MilliModelUnitsPerMinute


def load(queued: int, prefill: int, running: int, decode: int, queued_decode: int = 0) -> Load:
    return Load(queued, MilliModelUnits(prefill), running, MilliModelUnits(decode), MilliModelUnits(queued_decode))


def test_the_life_of_a_request() -> None:
    """Proves each stage: prefill is pending until the first token, decode is queued outside and shrinks inside."""
    account = LoadAccount()
    account.queue("a", prefill_milli_mu=100, decode_milli_mu=50, output_tokens=10)
    assert account.load() == load(1, 100, 0, 0, 50)
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
    """Proves that negative prices and zero lengths from a broken router are taken as nothing, and that a full queue of
    the largest numbers there are still fits into a report."""
    account = LoadAccount()
    account.queue("a", prefill_milli_mu=-5, decode_milli_mu=-5, output_tokens=0)
    account.start("a")
    assert account.produce("a", 0) == 0
    assert account.produce("a", 3) == 0
    assert account.load() == load(0, 0, 1, 0)
    for number in range(1_000):
        account.queue(str(number), prefill_milli_mu=2**63 - 1, decode_milli_mu=2**63 - 1, output_tokens=1)
    full = account.load()
    assert full.pending_prefill_milli_mu == full.queued_decode_milli_mu == 1_000 * PRICE_MAX
    assert 1_000_000 * PRICE_MAX < 2**63


def test_who_leaves_while_waiting_takes_its_decode_along() -> None:
    """Proves that queued decode ends with the request that waited, however it ends, and is exact in between."""
    account = LoadAccount()
    for number in range(10):
        account.queue(str(number), prefill_milli_mu=3, decode_milli_mu=7 * number, output_tokens=3)
    assert account.load() == load(10, 30, 0, 0, 7 * 45)
    account.end("9")
    account.start("8")
    account.start("8")
    assert account.load() == load(8, 27, 1, 56, 7 * 28)
    for number in range(10):
        account.end(str(number))
    assert account.load() == load(0, 0, 0, 0)


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
