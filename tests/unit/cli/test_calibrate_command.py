"""Calibrations from the command: started, followed, paused, resumed, refused, published, reported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from fairlead.admin.v1 import calibration_pb2
from fairlead.cli import calibrations as following
from fairlead.cli.commands import root
from fairlead.cli.connection import AdminConnection
from tests.support.fake_platform import FakePlatform
from tests.unit.cli.conftest import Command

REFUSED = calibration_pb2.CALIBRATION_STATE_REFUSED
FAILED = calibration_pb2.CALIBRATION_STATE_FAILED
PAUSED = calibration_pb2.CALIBRATION_STATE_PAUSED


def test_a_calibration_from_start_to_publication(command: Command) -> None:
    """Without a terminal each load is a line on standard error, and the result is a table on standard output."""
    result = command.run("calibrate", "tiny")
    lines = [line for line in result.stderr.splitlines() if line.startswith("running")]
    assert [line.split(";")[0] for line in lines] == ["running 25%", "running 50%", "running 75%"]
    assert "load 2 of 4: 200 + 50 tokens" in lines[1]
    assert "0:40 min of engine time used, about 0:40 min left" in lines[1]
    assert "a 2e-05 ± 10%" in lines[1]
    assert "hold-out error 2.1%" in lines[1]
    for said in ("published", "1.8e-05", "2.2e-05", "2.1%", "tiny/h100/2", "chat", "-1.2%", "+3.4%"):
        assert said in result.stdout, said
    assert "back: fairlead profiles rollback tiny" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr


def test_programs_get_one_object(command: Command) -> None:
    """With -o json there is no progress, and the object holds every load and every coefficient in full."""
    result = command.run("-o", "json", "calibrate", "tiny")
    assert result.stderr == ""
    row = json.loads(result.stdout)
    assert (row["state"], row["progress"], row["model_id"]) == ("published", 1.0, "tiny")
    assert [entry["load"]["lengths"][0]["input_tokens"] for entry in row["experiments"]] == [100, 200, 300, 400]
    assert row["profile"]["d"] == 2.4e-10
    assert row["profile"]["evidence"]["class_errors"] == {"chat": -0.012, "code": 0.034}
    assert row["profile"]["evidence"]["intervals"]["a"]["low"] == pytest.approx(1.8e-5)


@pytest.mark.parametrize(
    ("ending", "said"), [(REFUSED, "prices stay as they were"), (FAILED, "nothing was published"), (PAUSED, "to go on")]
)
def test_what_does_not_end_well_ends_with_1(command: Command, platform: FakePlatform, ending: int, said: str) -> None:
    """Refused, failed and paused are told apart in words and are all exit code 1, with what to do next."""
    platform.control.calibration.ending = ending
    platform.control.calibration.detail = "the hold-out error is 9.0 %, more than 5 %"
    result = command.run("calibrate", "tiny", exit_code=1)
    assert "the hold-out error is 9.0 %" in result.stdout
    assert said in result.stderr
    assert "fairlead cal" in result.stderr


def test_every_option_reaches_the_server(command: Command, platform: FakePlatform) -> None:
    """Durations and percentages are understood, and what is not given is left to the server."""
    line = (
        "calibrate tiny --replica tiny-r1 --tpot-ms 40 --ttft-ms 800 --budget 1.5m --error-max 7% --form product "
        "--force --keep-active --take-last-replica --fresh --seed 9"
    )
    command.run(*line.split())
    request = platform.control.mutations[-1]
    options = request.options
    assert (options.replica_id, options.tpot_objective_ms, options.ttft_objective_ms) == ("tiny-r1", 40.0, 800.0)
    assert (options.budget.seconds, options.error_max, options.seed) == (90, 0.07, 9)
    assert options.form == calibration_pb2.COST_FORM_PRODUCT
    assert options.force
    assert options.keep_active
    assert options.take_last_replica
    assert request.fresh
    assert request.request_id
    command.run("calibrate", "tiny")
    plain = platform.control.mutations[-1].options
    assert not plain.HasField("budget")
    assert plain == calibration_pb2.CalibrationOptions(form=calibration_pb2.COST_FORM_ATTENTION)
    assert platform.control.mutations[-1].request_id != request.request_id


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("calibrate", "MODEL"),
        ("calibrate tiny --budget soon", "15m"),
        ("calibrate tiny --budget 0", "15m"),
        ("calibrate tiny --budget 999h", "15m"),
        ("calibrate tiny --error-max 5", "5% or 0.05"),
        ("calibrate tiny --error-max -1%", "5% or 0.05"),
        ("calibrate tiny --tpot-ms 0", "--tpot-ms"),
        ("calibrate tiny --form cubic", "attention"),
        ("calibrate --report tiny", "the MODEL is missing; --report has taken 'tiny' for its FILE"),
        ("calibrate tiny --report", "--report"),
        ("calibrate tiny --report --force", "that is an option, and a FILE is wanted"),
        ("calibrate tiny --detach --report x.html", "--detach"),
        ("calibrate tiny --report none/there.html", "no folder none"),
        ("calibrate tiny --report .", "it is a folder"),
        ("calibrations shw tiny", "did you mean show"),
    ],
)
def test_wrong_options_start_nothing(command: Command, platform: FakePlatform, line: str, said: str) -> None:
    """A mistake is one line that says what would be right, before anything has begun."""
    assert said in command.error(*line.split(), exit_code=2)
    assert platform.control.mutations == []


def test_an_unknown_model(command: Command) -> None:
    """The error names the command that lists models."""
    assert "fairlead models list" in command.error("calibrate", "huge", exit_code=5)


def test_dry_run_and_detach_do_not_wait(command: Command, platform: FakePlatform) -> None:
    """A dry run stores nothing; a detached calibration runs on and can be followed later."""
    dry = command.run("calibrate", "tiny", "--dry-run")
    assert "dry run, nothing was changed" in dry.stderr
    assert "follow" not in dry.stderr
    assert platform.control.calibration.calibrations == {}
    detached = command.run("calibrate", "tiny", "--detach")
    assert "fairlead calibrations follow tiny@1" in detached.stderr
    assert "tiny@1 measures tiny already" in command.error("calibrate", "tiny", exit_code=1)
    assert "published" in command.run("calibrations", "follow", "tiny").stdout


def test_ctrl_c_pauses_and_the_same_command_goes_on(
    command: Command, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt pauses on the server and says how to go on; the next run keeps what was measured."""
    fake = platform.control.calibration
    fake.hold_after = 2
    _interrupt_after(monkeypatch, loads=2, times=1)
    result = command.run("calibrate", "tiny", "--report", "calibration-tiny.html", exit_code=130)
    assert fake.calibrations["tiny@1"].state == PAUSED
    assert "to go on: fairlead calibrate tiny" in result.stderr
    assert "2 loads" in Path("calibration-tiny.html").read_text()
    fake.hold_after = None
    resumed = command.run("calibrate", "tiny")
    assert "goes on with tiny@1: 2 loads are measured already" in resumed.stderr
    assert len(fake.calibrations["tiny@1"].experiments) == 4
    assert "running 50%" not in resumed.stderr


def test_a_second_ctrl_c_leaves_at_once(
    command: Command, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause that takes its time is not waited for, and the command says that it does not know."""
    platform.control.calibration.hold_after = 1
    platform.control.calibration.pause_is_slow = True
    _interrupt_after(monkeypatch, loads=1, times=2)
    result = command.run("calibrate", "tiny", exit_code=130)
    assert "left at once; `fairlead calibrations show tiny@1`" in result.stderr
    assert result.stderr.rstrip().endswith("interrupted")


def _interrupt_after(monkeypatch: pytest.MonkeyPatch, *, loads: int, times: int) -> None:
    """Ctrl-C, so many times: each while the command waits for what comes after so many loads."""
    original, left = AdminConnection.stream, [times]

    def stream(self, method, request):  # type: ignore[no-untyped-def]
        for update in original(self, method, request):
            yield update
            if left[0] and len(update.experiments) == loads:
                left[0] -= 1
                raise KeyboardInterrupt

    monkeypatch.setattr(AdminConnection, "stream", stream)


def test_a_takeover_of_the_control_plane_is_waited_for(command: Command, platform: FakePlatform) -> None:
    """Streams that break are opened again, and the calibration is followed to its end."""
    platform.control.calibration.streams_break = 2
    result = command.run("calibrate", "tiny")
    assert "waiting for the control plane" in result.stderr
    assert "published" in result.stdout


def test_a_control_plane_that_stays_away_is_given_up(
    command: Command, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute of silence the command says that the calibration goes on and how to look again."""
    monkeypatch.setattr(following, "LOST_MAX_S", 0.0)
    platform.control.calibration.streams_break = 1000
    result = command.run("calibrate", "tiny", exit_code=3)
    assert "which goes on" in result.stderr
    assert "`fairlead calibrations follow tiny@1`" in result.stderr


def test_a_server_that_lags_behind_is_not_believed(command: Command, platform: FakePlatform) -> None:
    """The paused state from before a resumption, told by a standby, does not end the command."""
    fake = platform.control.calibration
    fake.ending = PAUSED
    command.run("calibrate", "tiny", exit_code=1)
    old = calibration_pb2.Calibration()
    old.CopyFrom(fake.calibrations["tiny@1"])
    fake.calibrations["tiny@1"].experiments.pop()
    fake.ending = calibration_pb2.CALIBRATION_STATE_PUBLISHED
    fake.stale = [old]
    assert "published" in command.run("calibrate", "tiny").stdout


def test_reports(command: Command, tmp_path: Path) -> None:
    """A report goes to the named file or to the model's, its place is said, and a later one can be asked for."""
    result = command.run("calibrate", "tiny", "--report", "mine.html")
    assert (tmp_path / "mine.html").read_text().startswith("<!DOCTYPE html>")
    assert str(tmp_path / "mine.html") in result.stderr
    command.run("calibrations", "report", "tiny")
    assert (tmp_path / "calibration-tiny.html").is_file()
    row = command.json("calibrations", "report", "tiny@1", "again.html")
    assert row == {"calibration_id": "tiny@1", "file": "again.html"}
    assert (tmp_path / "again.html").is_file()
    assert "no folder none" in command.error("calibrations", "report", "tiny", "none/x.html", exit_code=2)


def test_a_report_that_cannot_be_written_does_not_hide_the_result(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while it measures: the result is printed, and the error says how to get the report."""

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    result = command.run("calibrate", "tiny", "--report", "x.html", exit_code=2)
    assert "published" in result.stdout
    assert "No space left on device" in result.stderr
    assert "fairlead calibrations report tiny@1 FILE" in result.stderr


def test_list_show_pause_and_publish(command: Command, platform: FakePlatform) -> None:
    """Calibrations are listed newest first, found by id or model, paused, and published after a question."""
    fake = platform.control.calibration
    assert "fairlead calibrate MODEL" in command.run("calibrations", "list").stdout
    fake.add_refused("tiny")
    command.run("calibrate", "tiny", "--detach")
    assert [row["calibration_id"] for row in command.json("calibrations", "list")] == ["tiny@2", "tiny@1"]
    assert command.json("calibrations", "list", "--model", "other") == []
    assert "refused" in command.run("calibrations", "list").stdout
    assert command.json("calibrations", "show", "tiny")["state"] == "pending"
    assert command.json("calibrations", "pause", "tiny")["state"] == "paused"
    assert "it does not run" in command.error("calibrations", "pause", "tiny", exit_code=1)
    assert "9.0%" in command.error("calibrations", "publish", "tiny@1", exit_code=2)
    assert fake.calibrations["tiny@1"].state == REFUSED
    assert "dry run" in command.run("calibrations", "publish", "tiny@1", "--dry-run").stderr
    assert fake.calibrations["tiny@1"].state == REFUSED
    assert command.json("calibrations", "publish", "tiny@1", "--yes", "--keep-active")["state"] == "published"
    missing = command.error("calibrations", "show", "nobody", exit_code=5)
    assert "fairlead calibrations list" in missing


def test_a_fit_that_nothing_is_known_about(command: Command, platform: FakePlatform) -> None:
    """An interval without an end is shown as such, and is null where JSON knows no such number."""
    refused = platform.control.calibration.add_refused("tiny")
    for name in ("a", "b", "d", "g"):
        refused.profile.evidence.intervals[name].low = 0.0
        refused.profile.evidence.intervals[name].high = float("inf")
    shown = command.run("calibrations", "show", "tiny").stdout
    assert "inf" in shown
    assert "inf%" not in shown
    text = command.run("-o", "json", "calibrations", "show", "tiny").stdout
    assert "Infinity" not in text
    assert json.loads(text)["profile"]["evidence"]["intervals"]["a"] == {"low": 0.0, "high": None}


def test_hostile_text_is_shown_as_text(command: Command, platform: FakePlatform) -> None:
    """Markup in a detail is neither obeyed nor swallowed."""
    platform.control.calibration.detail = "[bold]load[/] [/nothing] [red"
    platform.control.calibration.ending = FAILED
    assert "[bold]load[/] [/nothing] [red" in command.run("calibrate", "tiny", exit_code=1).stdout


def _section_of_the_manual() -> str:
    manual = (Path(__file__).resolve().parents[3] / "docs/calibration.md").read_text()
    return manual.split("## From the command line\n")[1].split("\n## ")[0]


def test_every_command_of_the_manual_exists() -> None:
    """Each line of the manual names a command, and only options that this command has."""
    lines = [
        line.split("#")[0].split() for line in _section_of_the_manual().splitlines() if line.startswith("fairlead ")
    ]
    assert len(lines) >= 13
    for line in lines:
        rest, found = line[1:], root
        while isinstance(found, click.Group):
            found = found.commands[rest.pop(0)]
        found.make_context(" ".join(line), rest, resilient_parsing=True)
        options = {name for parameter in found.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= options, line


def test_every_option_of_the_api_has_its_flag_in_the_manual() -> None:
    """The manual's table holds every option of a calibration, next to a flag that the command has."""
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| `(--[a-z-]+)", _section_of_the_manual(), re.MULTILINE))
    flags = {name for parameter in root.commands["calibrate"].params for name in parameter.opts}
    assert set(rows.values()) <= flags
    assert set(rows) == {*calibration_pb2.CalibrationOptions.DESCRIPTOR.fields_by_name, "fresh", "validate_only"}


def test_help_says_what_an_error_limit_and_a_small_budget_mean(command: Command) -> None:
    """Traffic classes have one percent more, and a budget too small for the tests cannot publish."""
    said = " ".join(command.run("calibrate", "--help").stdout.split())
    assert "Traffic classes may be off by one percent more" in said
    assert "too small for the tests of the result cannot publish" in said
    assert "--report FILE" in said
