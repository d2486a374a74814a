"""Capacity: the ledger, what-ifs, sales and explanations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.commands import root
from tests.support.fake_platform import FakePlatform
from tests.unit.cli.conftest import Command

REPLICA = admin_pb2.HEADROOM_REPLICA


def test_capacity_show(command: Command, platform: FakePlatform) -> None:
    """Proves that have, sellable, sold and used, the headroom and what is not covered are in JSON and table."""
    (row,) = command.json("capacity", "show")
    assert (row["have_milli_mu_per_minute"], row["sold_milli_mu_per_minute"]) == (80_000, 60_000)
    assert (row["headroom"], row["sellable_milli_mu_per_minute"]) == ("unspecified", 80_000)
    assert row["quotas"][0]["tenant_id"] == "alpha"
    shown = command.run("capacity", "show").stdout
    for word in ("75%", "sellable", "none"):
        assert word in shown
    platform.control.models["tiny"].headroom = REPLICA
    (row,) = command.json("capacity", "show", "--model", "tiny")
    assert (row["sellable_milli_mu_per_minute"], row["uncovered_after_loss_milli_mu_per_minute"]) == (0, 60_000)
    assert row["largest_domain"]["name"] == "tiny-r1"
    assert "replica (tiny-r1: 80.0)" in command.run("capacity", "show").stdout
    platform.control.models.clear()
    assert "fairlead models list" in command.run("capacity", "show").stdout


def test_plan_shows_before_and_after(command: Command) -> None:
    """Proves that every what-if reaches the allocator, and that people see figures, losers and findings."""
    line = (
        "capacity plan tiny --lose-replica tiny-r1 --lose-replica other --lose-host h --lose-rack k --add-replicas 2 "
        "--replica-capacity 55.5 --reserve alpha=70 --reserve beta=10.25 --without gamma --target-utilization 0.9 "
        "--headroom replica"
    )
    answer = command.json(*line.split())
    assert (answer["before"]["replicas_ready"], answer["after"]["replicas_ready"]) == (1, 2)
    assert answer["after"]["have_milli_mu_per_minute"] == 88_800
    assert answer["after"]["sold_milli_mu_per_minute"] == 80_250
    assert answer["covered"] is False
    lost = command.run("capacity", "plan", "tiny", "--lose-host", "host-1")
    for word in ("-80.0", "-60.0", "alpha", "60 MU/min would not be covered", "not every reservation is covered"):
        assert word in lost.stdout, lost.stdout
    plain = command.run("capacity", "plan", "tiny").stdout
    assert "every reservation is covered" in plain
    assert "alpha" not in plain, "nobody is touched"
    kept = command.json("capacity", "plan", "tiny", "--reserve", "alpha=70")["after"]["quotas"][0]
    assert kept["burst_ceiling_milli_mu_per_minute"] == 120_000, "what is not asked for stays"


def test_sell_checks_and_sells(command: Command, platform: FakePlatform) -> None:
    """Proves that a dry run sells nothing, a sale is stored, and what is not covered ends with 1, sold or not."""
    line = ["capacity", "sell", "beta", "tiny", "--reserved", "20", "--burst", "40", "--tier", "2", "--weight", "3"]
    tried = command.json(*line, "--dry-run")
    assert (tried["sellable"], tried["sold"], tried["headroom_milli_mu_per_minute"]) == (True, False, 0)
    assert ("tiny", "beta") not in platform.control.reservations
    sold = command.run(*line)
    assert "20.0 MU/min of tiny sold to beta" in sold.stderr
    stored = platform.control.reservations["tiny", "beta"]
    assert (stored.reserved_milli_mu_per_minute, stored.burst_ceiling_milli_mu_per_minute) == (20_000, 40_000)
    assert (stored.tier, stored.weight) == (2, 3)
    for flags in ((), ("--dry-run",)):
        refused = command.run("capacity", "sell", "gamma", "tiny", "--reserved", "1", *flags, exit_code=1)
        assert "80.0" in refused.stdout
        assert "cannot be sold to gamma: at most 0.0 can" in refused.stderr
        assert "fairlead capacity plan tiny" in refused.stderr
    result = command.run("-o", "json", "capacity", "sell", "gamma", "tiny", "--reserved", "1", exit_code=1)
    assert json.loads(result.stdout)["sellable"] is False
    assert json.loads(result.stderr)["error"]["reason"] == "CAPACITY_EXCEEDED"
    assert ("tiny", "gamma") not in platform.control.reservations


def test_sell_more_says_now_and_then_and_never_lowers(command: Command, platform: FakePlatform) -> None:
    """Proves that --more adds to what a tenant has, that both amounts are shown, and that less is not sold."""
    tried = command.json("capacity", "sell", "alpha", "tiny", "--more", "20", "--dry-run")
    assert (tried["reserved_now_milli_mu_per_minute"], tried["reserved_then_milli_mu_per_minute"]) == (60_000, 80_000)
    refused = command.run("capacity", "sell", "alpha", "tiny", "--more", "20.5", exit_code=1)
    assert "20.5 MU/min of tiny cannot be sold to alpha: at most 20.0 can" in refused.stderr
    sold = command.run("capacity", "sell", "alpha", "tiny", "--more", "15.5")
    assert "60.0 → 75.5" in sold.stdout
    assert "15.5 MU/min of tiny sold to alpha, 75.5 in all" in sold.stderr
    assert "lowers it" in command.error("capacity", "sell", "alpha", "tiny", "--reserved", "75", exit_code=2)
    assert platform.control.reservations["tiny", "alpha"].reserved_milli_mu_per_minute == 75_500
    checked, request = platform.control.mutations[-2:]
    assert (checked.validate_only, request.live_capacity_only, request.allow_oversell) == (True, True, False)


def test_explain_says_every_number(command: Command) -> None:
    """Proves that people see the parts and the steps, and programs all of it."""
    row = command.json("capacity", "explain", "alpha", "tiny")
    assert (row["lent_milli_mu_per_minute"], row["steps"][0]) == (19_040, "60 MU/min are reserved.")
    assert row["model"]["have_milli_mu_per_minute"] == 80_000
    shown = command.run("capacity", "explain", "alpha", "tiny").stdout
    for word in ("alpha may use 65.0 MU/min of tiny now", "lends to others", "19.0", "2. 19.04 MU/min of them"):
        assert word in shown
    assert "no reservation" in command.error("capacity", "explain", "nobody", "tiny", exit_code=5)


@pytest.mark.parametrize(
    ("line", "exit_code", "said"),
    [
        ("capacity plan", 2, "MODEL"),
        ("capacity plan none", 5, "fairlead models list"),
        ("capacity plan tiny --add-replicas 0", 2, "--add-replicas"),
        ("capacity plan tiny --add-replicas 10001", 2, "--add-replicas"),
        ("capacity plan tiny --replica-capacity 5", 2, "give both"),
        ("capacity plan tiny --add-replicas 1 --replica-capacity 0", 2, "above 0"),
        ("capacity plan tiny --target-utilization nan", 2, "above 0, up to 1"),
        ("capacity plan tiny --target-utilization 1.5", 2, "above 0, up to 1"),
        ("capacity plan tiny --target-utilization 0", 2, "above 0, up to 1"),
        ("capacity plan tiny --headroom moon", 2, "--headroom"),
        ("capacity plan tiny --reserve alpha", 2, "TENANT=MU"),
        ("capacity plan tiny --reserve =5", 2, "TENANT=MU"),
        ("capacity plan tiny --reserve alpha=-5", 2, "negative"),
        ("capacity plan tiny --reserve alpha=nan", 2, "finite"),
        ("capacity plan tiny --reserve alpha=1e300", 2, "more than"),
        ("capacity plan tiny --reserve alpha=5 --without alpha", 2, "cannot be both"),
        ("capacity sell alpha tiny", 2, "--reserved"),
        ("capacity sell alpha tiny --reserved 1 --more 1", 2, "either --reserved"),
        ("capacity sell alpha tiny --more 0", 2, "above 0"),
        ("capacity sell alpha tiny --more 1e999999", 2, "is more than 1,000,000,000 MU"),
        ("capacity sell alpha tiny --reserved 59.5", 2, "fairlead quota set alpha tiny --reserved 59.5"),
        ("capacity show --model typo", 5, "fairlead models list"),
        ("capacity sell alpha tiny --reserved 0", 2, "above 0"),
        ("capacity sell alpha tiny --reserved -3", 2, "negative"),
        ("capacity sell alpha tiny --reserved 1e17", 2, "more than"),
        ("capacity sell alpha tiny --reserved 70 --burst 5", 2, "at least the 70.0 reserved"),
        ("capacity sell alpha none --reserved 1", 5, "fairlead models list"),
    ],
)
def test_bad_questions_are_refused_by_name(command: Command, line: str, exit_code: int, said: str) -> None:
    """Proves that no amount, name or combination ends in a traceback."""
    assert said in command.error(*line.split(), exit_code=exit_code)


def test_names_are_completed(command: Command, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that the shell offers tenants and models where a command wants them, and nothing while nobody answers."""
    for name, value in command._environment.items():
        monkeypatch.setenv(name, value)

    def offered(args: list[str], incomplete: str) -> list[Any]:
        complete = ShellComplete(root, {}, "fairlead", "_FAIRLEAD_COMPLETE")
        return [item.value for item in complete.get_completions(args, incomplete)]

    for group, command_name in (("capacity", "sell"), ("capacity", "explain"), ("quota", "set")):
        assert offered([group, command_name], "al") == ["alpha"]
        assert offered([group, command_name, "alpha"], "") == ["tiny"]
    assert offered(["capacity", "plan"], "ti") == ["tiny"]
    assert offered(["capacity", "plan", "tiny", "--without"], "") == ["alpha"]
    assert offered(["quota", "export", "--model"], "") == ["tiny"]
    monkeypatch.setenv("FAIRLEAD_ADMIN_ADDRESS", "127.0.0.1:9")
    assert offered(["quota", "set"], "") == []
