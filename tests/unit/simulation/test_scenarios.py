"""Scenario files: what is wrong is refused by name, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fairlead.errors import InvalidArgumentError
from simulation.__main__ import main
from simulation.arrivals import Workloads
from simulation.fleet import Simulation
from simulation.scenario import parse_scenario, read_scenario

GOOD = '[[model]]\nid = "chat"\nreplicas = 2\n[[tenant]]\nid = "acme"\nreservation_mu_per_minute = 100\nload = 0.3\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("= 1", "not TOML"),
        ("", "at least one"),
        ("routrs = 3\n" + GOOD, "did you mean 'routers'"),
        ("model = 3", r"\[\[model\]\]"),
        (GOOD.replace("replicas", "replica"), "did you mean 'replicas'"),
        (GOOD.replace("replicas = 2", "replicas = 2.5"), "replicas must be a whole number"),
        (GOOD.replace("replicas = 2", "replicas = true"), "replicas must be a whole number"),
        (GOOD.replace("replicas = 2", "replicas = -1"), "replicas must be 0 to"),
        (GOOD.replace("load = 0.3", "load = nan"), "load must be"),
        (GOOD.replace('id = "acme"\n', ""), "id is missing"),
        (GOOD + 'model = "chatt"\n', "did you mean 'chat'"),
        (GOOD + 'priority = "interactiv"\n', "did you mean 'interactive'"),
        (GOOD + '[[tenant]]\nid = "acme"\n', "must differ"),
        (GOOD.replace('"acme"', '"a/b"'), "no '/'"),
        (GOOD + "[[failure]]\nreplica = 3\n", "starts with 2"),
        (GOOD + '[[failure]]\nmodel = "other"\n', "names the model"),
        ('policy = "fastest"\n' + GOOD, "policy is 'fastest'"),
        ("duration_s = 0\n" + GOOD, "duration_s must be"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    """Each mistake is refused with a message that names it."""
    with pytest.raises(InvalidArgumentError, match=message):
        parse_scenario(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('hardware = "h1000"', "no simulated hardware"),
        ('profile = "none/at/all"', "no cost profile"),
    ],
)
def test_what_is_not_there_is_named(change: str, message: str) -> None:
    """Hardware and profiles that nobody has are refused before anything runs."""
    with pytest.raises(InvalidArgumentError, match=message):
        Simulation(parse_scenario(GOOD.replace("replicas = 2", f"replicas = 2\n{change}")))


def test_a_workload_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A trace file that is missing, and a client nobody is in it, are refused."""
    with pytest.raises(InvalidArgumentError, match=r"no workload 'x\.csv'"):
        Simulation(parse_scenario(GOOD + 'workload = "x.csv"\n'), Workloads(tmp_path))
    with pytest.raises(InvalidArgumentError, match="no client 'nobody'"):
        Simulation(parse_scenario(GOOD + 'client = "nobody"\n'))


def test_counts_make_tenants_of_their_own() -> None:
    """A count of three makes three tenants that begin at different places of a recorded workload."""
    scenario = parse_scenario(GOOD + "count = 3\n")
    assert [tenant.id for tenant in scenario.tenants] == ["acme-1", "acme-2", "acme-3"]
    assert len({tenant.offset_s for tenant in scenario.tenants}) == 3


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file is a plain message."""
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        read_scenario(tmp_path / "none.toml")


def test_the_command(tmp_path: Path) -> None:
    """The command prints a table or JSON, writes a report, and says plainly what is wrong."""
    path = tmp_path / "small.toml"
    path.write_text(GOOD)
    page = tmp_path / "report.html"
    runner = CliRunner()
    done = runner.invoke(main, [str(path), "--duration-s", "4", "--seed", "2", "--report", str(page)])
    assert done.exit_code == 0, done.output
    assert "acme" in done.output
    assert "requests per minute" in done.output
    assert page.read_text().startswith("<!DOCTYPE html>")
    done = runner.invoke(main, [str(path), "--duration-s", "4", "-o", "json", "--quiet"])
    assert '"received"' in done.output
    path.write_text(GOOD + "nonsense = 1\n")
    done = runner.invoke(main, [str(path)])
    assert done.exit_code != 0
    assert "nonsense" in done.output
