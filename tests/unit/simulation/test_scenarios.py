"""Scenario files: what is wrong is refused by name, with what to do."""

from __future__ import annotations

import functools
import json
import runpy
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fairlead.cli import main as command
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
        ("seed = -5\n" + GOOD, "seed must be 0 or more"),
        (f"seed = {10**400}\n" + GOOD, "seed has more digits"),
        (GOOD.replace("load = 0.3", f"load = {10**400}"), "load has more digits"),
        (GOOD + "rate_scale = 1e9\n", "rate_scale must be 1e-06 to 10000"),
        ("autoscaler = true\nquota = false\n" + GOOD, "leave quota on"),
        (GOOD + '[[group]]\nmodel = "other"\n', "a group names the model"),
        (GOOD + "[[group]]\nspeed = 0\n", "speed must be"),
        (GOOD + "[[group]]\n[[failure]]\nreplica = 4\n", "starts with 3"),
        (GOOD + "start_s = 30\nend_s = 20\n", "end_s 20 is not after start_s 30"),
        (
            GOOD.replace("replicas = 2", "replicas_min = 5\nreplicas_max = 4"),
            "replicas_min 5 is above 4, its replicas_max",
        ),
        (GOOD.replace("replicas = 2", "replicas = 2\nreplicas_min = 3"), "replicas_min 3 is above 2, its replicas"),
        (
            "duration_s = 60\n" + GOOD + "[[failure]]\nat_s = 61\n",
            r"failure 1 \(crash\) is at 61 s, after the run's 60 s",
        ),
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
        (
            'hardware = "h100-tp4"\nprofile = "llama-3.1-8b/h100/2"',
            "was measured on 'h100'; model 'chat' runs on 'h100-tp4'",
        ),
    ],
)
def test_what_is_not_there_is_named(change: str, message: str) -> None:
    """Hardware and profiles that nobody has are refused before anything runs."""
    with pytest.raises(InvalidArgumentError, match=message):
        Simulation(parse_scenario(GOOD.replace("replicas = 2", f"replicas = 2\n{change}")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            'workload = "synthetic"\nrequests_per_s = 1e9\nload = 0',
            "about 120,000,000,000 requests.* smaller requests_per_s",
        ),
        ('workload = "synthetic"\nload = 100\ninput_sigma = 0\ninput_tokens = 1\noutput_tokens = 1', "smaller load"),
        ('workload = "close.csv"\nload = 0', "a smaller rate_scale or a shorter duration_s"),
        ("rate_scale = 9e3\nload = 0", "a smaller rate_scale"),
    ],
)
def test_traffic_without_end_is_refused_before_the_run(tmp_path: Path, change: str, message: str) -> None:
    """A rate that would keep the simulator busy for ever is refused with the knob to turn, whoever set it."""
    (tmp_path / "close.csv").write_text("t_s,input_tokens,output_tokens\n0,10,5\n0.000001,10,5\n")
    text = GOOD.replace("replicas = 2", "replicas = 2000").replace("load = 0.3\n", change + "\n")
    with pytest.raises(InvalidArgumentError, match=message):
        Simulation(parse_scenario(text), Workloads(tmp_path))


def test_usage_names_the_program_that_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run by the command, the simulator calls itself as it was called; run as a module, by the module's name."""
    # As Python itself runs a module: https://docs.python.org/3/library/runpy.html
    as_module = functools.partial(runpy.run_module, "simulation", run_name="__main__", alter_sys=True)
    monkeypatch.delitem(sys.modules, "simulation.__main__")  # this process has not begun yet
    for program, arguments, run in (
        ("fairlead simulate", ["fairlead", "simulate", "--help"], command),
        ("python -m simulation", ["-m", "--help"], as_module),
    ):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            run()
        assert not end.value.code
        assert capsys.readouterr().out.startswith(f"Usage: {program} [OPTIONS] SCENARIO\n")


def test_what_was_assumed_of_workloads_is_shown(tmp_path: Path) -> None:
    """Notes on every workload stand under the table, in JSON and in the report, each once however many play it."""
    (tmp_path / "log.csv").write_text("t_s,input_tokens,output_tokens\n5,0,5\n1,10,5\n2,10,5\n")
    (tmp_path / "pairs.csv").write_text("input_tokens,output_tokens\n10,5\n20,6\n")
    path, page = tmp_path / "small.toml", tmp_path / "report.html"
    path.write_text(
        GOOD.replace("load = 0.3\n", 'count = 2\nworkload = "log.csv"\nrate_scale = 2.5\n')
        + '[[tenant]]\nid = "drawn"\nworkload = "pairs.csv"\n'
    )
    arguments = [str(path), "--traces", str(tmp_path), "--duration-s", "4"]
    notes = json.loads(CliRunner().invoke(main, [*arguments, "-o", "json"]).output)["notes"]
    assert notes == [
        "log.csv: 1 lengths of 0 tokens were taken as 1",
        "log.csv: times were not in order: sorted",
        "log.csv: recorded time runs 2.5 times as fast, which scales the rate",
        "log.csv: after 6 recorded seconds the recording begins again",
        "pairs.csv: the file has no times: arrivals are Poisson",
    ]
    done = CliRunner().invoke(main, [*arguments, "--report", str(page)])
    for note in notes:
        assert f"* {note}" in done.output
        assert note in page.read_text()


def test_a_recording_as_it_is_needs_no_note() -> None:
    """The excerpt at its own rate for a part of its length is what it is."""
    scenario = parse_scenario("duration_s = 5\n" + GOOD.replace("load = 0.3\n", ""))
    assert Simulation(scenario).run().notes == ()


def test_a_short_part_of_dense_traffic_may_run() -> None:
    """What counts is the work there is: the same rate is taken for as long as it ends soon."""
    text = GOOD.replace("load = 0.3\n", 'workload = "synthetic"\nrequests_per_s = 1e5\nstart_s = 1\nend_s = 1.001\n')
    assert Simulation(parse_scenario(text)).run().requests > 50


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--duration-s", "nan", "duration_s must be"),
        ("--duration-s", "inf", "duration_s must be"),
        ("--duration-s", "0", "duration_s must be"),
        ("--seed", "-5", "seed must be 0 or more"),
        ("--duration-s", "30", "after the run's 30 s"),
    ],
)
def test_what_the_command_overrides_is_checked_alike(tmp_path: Path, option: str, value: str, message: str) -> None:
    """An option may say nothing that the scenario's file may not."""
    path = tmp_path / "small.toml"
    path.write_text("duration_s = 60\n" + GOOD + "[[failure]]\nat_s = 40\n")
    done = CliRunner().invoke(main, [str(path), option, value])
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


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
    done = runner.invoke(main, [str(path), "--duration-s", "2", "--seed", "2", "--report", str(page)])
    assert done.exit_code == 0, done.output
    assert "acme" in done.output
    assert "requests per minute" in done.output
    assert page.read_text().startswith("<!DOCTYPE html>")
    done = runner.invoke(main, [str(path), "--duration-s", "1", "-o", "json", "--quiet"])
    assert '"received"' in done.output
    path.write_text(GOOD + "nonsense = 1\n")
    done = runner.invoke(main, [str(path)])
    assert done.exit_code != 0
    assert "nonsense" in done.output
