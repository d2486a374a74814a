"""Ledgers kept up to date change by change."""

from __future__ import annotations

from random import Random

import pytest

from capacity.core import live as live_module
from capacity.core.allocate import allocate
from capacity.core.live import LiveLedgers
from capacity.core.values import PPM, Demand, Model, ModelLedger, Replica, Reservation
from capacity.core.wants import round_up
from common.clock import NS_PER_S, MonotonicNs
from model_units.units import MilliModelUnitsPerMinute as Rate


def at(seconds: float) -> MonotonicNs:
    return MonotonicNs(round(seconds * NS_PER_S))


def wants(**rates: int) -> dict[str, Demand]:
    return {tenant: Demand(Rate(rate), Rate(0)) for tenant, rate in rates.items()}


def start(have: int, **reserved: tuple[int, int]) -> LiveLedgers:
    live = LiveLedgers()
    live.set_model("m", Model("m", PPM))
    live.set_replica("r", Replica("r", "m", Rate(have), True))
    for tenant, (rate, ceiling) in reserved.items():
        live.set_reservation("m", tenant, Reservation(tenant, "m", Rate(rate), Rate(ceiling)))
    return live


def compute(live: LiveLedgers, seconds: float, model_id: str = "m") -> ModelLedger:
    for name in live.changed(at(seconds)):
        live.compute(name, at(seconds))
    return next(ledger for ledger in live.ledgers if ledger.model_id == model_id)


def granted(ledger: ModelLedger) -> dict[str, int]:
    return {quota.tenant_id: quota.granted for quota in ledger.quotas}


def test_only_models_whose_inputs_changed_are_computed() -> None:
    """Proves that a change names the models it is about and no other, for every kind of change."""
    live = start(100, a=(10, 50))
    live.set_model("n", Model("n", PPM))
    assert live.changed(at(0)) == ["m", "n"]
    compute(live, 0)
    assert live.changed(at(0)) == []
    live.set_replica("r2", Replica("r2", "n", Rate(5), True))
    assert live.changed(at(0)) == ["n"]
    compute(live, 0)
    live.set_replica("r2", Replica("r2", "m", Rate(5), True))
    assert live.changed(at(0)) == ["m", "n"], "a replica that changes its model concerns both"
    compute(live, 0)
    assert live.set_demand({"m": wants(a=5)})
    assert live.changed(at(0)) == ["m"]
    compute(live, 0)
    assert not live.set_demand({"m": wants(a=5)})
    assert live.changed(at(0)) == []
    live.set_reservation("m", "a", None)
    assert granted(compute(live, 0)) == {}


def test_gone_models_are_forgotten() -> None:
    """Proves that a deleted model has no ledger, and that what is left of it waits for it to come back."""
    live = start(100, a=(10, 50))
    compute(live, 0)
    live.set_model("m", None)
    for name in live.changed(at(0)):
        assert live.compute(name, at(0)) is None
    assert live.ledgers == ()
    live.set_model("m", Model("m", PPM))
    assert granted(compute(live, 0)) == {"a": 50}


def test_agrees_with_the_pure_function_on_a_fresh_start() -> None:
    """Proves that a fleet fed in piece by piece gives the very answer of `allocate`."""
    live = start(100_000, a=(40_000, 0), b=(30_000, 90_000), c=(0, 50_000))
    live.set_demand({"m": wants(a=1_000, b=70_000, c=9_000)})
    expected = allocate(
        [Replica("r", "m", Rate(100_000), True)],
        [Model("m", PPM)],
        [
            Reservation("a", "m", Rate(40_000), Rate(0)),
            Reservation("b", "m", Rate(30_000), Rate(90_000)),
            Reservation("c", "m", Rate(0), Rate(50_000)),
        ],
        {("m", tenant): row for tenant, row in wants(a=1_000, b=70_000, c=9_000).items()},
    )
    assert (compute(live, 0),) == expected


def test_an_owner_has_its_reservation_back_in_the_next_round() -> None:
    """Proves that neither steady counting nor standing quotas keep an owner waiting."""
    live = start(240_000, a=(150_000, 150_000), b=(50_000, 240_000))
    live.set_demand({"m": wants(a=0, b=240_000)})
    assert granted(compute(live, 0)) == {"a": 75_000, "b": 165_000}
    live.set_demand({"m": wants(a=75_001, b=240_000)})
    assert granted(compute(live, 0.1)) == {"a": 150_000, "b": 90_000}


def test_idle_shares_stand_while_little_moves() -> None:
    """Proves that a change of wants that everybody has room for moves no quota, and that a notable one does."""
    live = start(100_000, a=(20_000, 100_000), b=(20_000, 100_000))
    live.set_demand({"m": wants(a=21_000, b=5_000)})
    before = compute(live, 0)
    live.set_demand({"m": wants(a=23_000, b=5_200)})
    after = compute(live, 1)
    assert after.columns.shares is before.columns.shares
    assert after.quotas[0].wants == 23_000, "what is wanted is told as it is"
    live.set_demand({"m": wants(a=90_000, b=5_200)})
    assert granted(compute(live, 2)) == {"a": 89_248, "b": 10_752}


def noisy(live: LiveLedgers, rounds: int) -> int:
    """Rounds under 5 % noise in which quotas changed, after some to settle."""
    random, changes, before = Random(1), 0, None
    for second in range(rounds):
        rows = {t: round(mean * random.uniform(0.95, 1.05)) for t, mean in (("a", 30_000), ("b", 9_000), ("c", 80_000))}
        live.set_demand({"m": wants(**rows)})
        ledger = compute(live, second)
        changes += int(before is not None and second > 20 and granted(ledger) != before)
        before = granted(ledger)
        assert sum(before.values()) <= ledger.have
    return changes


@pytest.mark.parametrize("have", [200_000, 100_000])
def test_noise_moves_no_quota(have: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that 5 % noise in wants changes no quotas, scarce or not; and that it would without standing quotas."""
    sold = {"a": (20_000, 90_000), "b": (20_000, 90_000), "c": (20_000, 90_000)}
    assert noisy(start(have, **sold), 120) <= 3
    monkeypatch.setattr(live_module, "may_stand", lambda held, fresh: False)
    monkeypatch.setattr(live_module.SteadyWants, "count", lambda self, tenants, wanted, now: round_up(wanted))
    assert noisy(start(have, **sold), 120) > 20
