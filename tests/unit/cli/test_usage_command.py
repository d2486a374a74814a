"""fairlead usage: shown and exported, exactly, in every form, whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fairlead.cli.periods import moment, period
from fairlead.cli.usage_rows import mu_of
from fairlead.errors import FailedPreconditionError, InvalidArgumentError
from tests.support.fake_platform import FakePlatform
from tests.unit.cli.conftest import Command

HOUR_S = 1_795_302_000
NOW = datetime(2026, 11, 22, 19, 30, tzinfo=UTC)


@pytest.fixture
def used(platform: FakePlatform) -> FakePlatform:
    """Two hours, two tenants, two models."""
    usage = platform.control.usage
    usage.complete_until_s = HOUR_S + 3_000
    usage.add("alpha", "tiny", HOUR_S, 3)
    usage.add("beta", "tiny", HOUR_S)
    usage.add("alpha", "large", HOUR_S + 3600, 5)
    usage.add("alpha", "tiny", HOUR_S + 3600, 2)
    return platform


def test_show_adds_hours_up_per_tenant_and_model(command: Command, used: FakePlatform) -> None:
    """The largest charge first, a bar of its share, the total below; complete until when."""
    result = command.run("usage", "show")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:3] for line in lines[1:]] == [
        ["alpha", "large", "5"],
        ["alpha", "tiny", "5"],
        ["beta", "tiny", "1"],
        ["total", "-", "11"],
    ]
    assert "█" in result.stdout
    assert "complete until 2026-11-21T23:50:00Z" in result.stderr
    assert used.control.usage.requests[0].start_time.seconds > 0


def test_show_as_json(command: Command, used: FakePlatform) -> None:
    """Programs get rows, totals and up to when they are complete."""
    answer = command.json("usage", "show", "--tenant", "beta", "--start", "7d")
    assert answer["complete_until_time"] == "2026-11-21T23:50:00Z"
    assert answer["totals"]["milli_mu"] == 3_003
    assert answer["rows"] == [
        {
            "tenant_id": "beta",
            "model_id": "tiny",
            "requests": 1,
            "input_tokens": 100,
            "cached_input_tokens": 20,
            "output_tokens": 50,
            "prefill_milli_mu": 1_001,
            "decode_milli_mu": 2_002,
            "milli_mu": 3_003,
        }
    ]


def test_csv_is_for_machines_and_its_account_for_people(command: Command, used: FakePlatform) -> None:
    """RFC 4180 with a header, whole numbers of milli-MU, MU with three decimals; the totals go to standard error."""
    result = command.run("usage", "export")
    header, first, *_ = result.stdout_bytes.decode().split("\r\n")
    assert header.split(",") == [
        "hour",
        "tenant_id",
        "model_id",
        "requests",
        "input_tokens",
        "cached_input_tokens",
        "output_tokens",
        "prefill_milli_mu",
        "decode_milli_mu",
        "milli_mu",
        "mu",
    ]
    assert first == "2026-11-21T23:00:00Z,alpha,tiny,3,300,60,150,3003,6006,9009,9.009"
    rows = list(csv.DictReader(io.StringIO(result.stdout_bytes.decode(), newline="")))
    assert sum(int(row["milli_mu"]) for row in rows) == 33_033
    assert "4 rows: 11 requests, 33.033 MU" in result.stderr


def test_json_lines_and_json(command: Command, used: FakePlatform, tmp_path: Path) -> None:
    """One object per row, or one with rows, totals and completeness; -o json chooses JSON by itself."""
    lines = command.run("usage", "export", "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["requests"] for line in lines] == [3, 1, 5, 2]
    whole = command.json("usage", "export", "--model", "tiny")
    assert [row["tenant_id"] for row in whole["rows"]] == ["alpha", "beta", "alpha"]
    assert whole["totals"]["requests"] == 6
    assert whole["complete_until_time"] == "2026-11-21T23:50:00Z"
    used.control.usage.rows.clear()
    assert command.json("usage", "export")["rows"] == []


def test_form_that_no_file_has_is_refused(command: Command, used: FakePlatform) -> None:
    """-o yaml is no silent CSV; a form that is named counts, whatever the output's is."""
    assert "--format csv" in command.run("-o", "yaml", "usage", "export", exit_code=2).stderr
    assert not used.control.usage.requests
    assert command.run("-o", "yaml", "usage", "export", "--format", "csv").stdout.startswith("hour,")


def test_file_is_written_whole_or_not_at_all(command: Command, used: FakePlatform, tmp_path: Path) -> None:
    """A failure on the way leaves the old file as it was, and nothing beside it."""
    target = tmp_path / "out" / "usage.csv"
    target.parent.mkdir()
    command.run("usage", "export", "--file", str(target))
    whole = target.read_bytes()
    assert whole.count(b"\r\n") == 5
    used.control.usage.failure = FailedPreconditionError("the usage stored at usage/x is damaged")
    assert "damaged" in command.error("usage", "export", "--file", str(target), exit_code=1)
    assert target.read_bytes() == whole
    assert [path.name for path in target.parent.iterdir()] == ["usage.csv"]
    assert "cannot write" in command.error("usage", "export", "--file", "no/such/folder.csv", exit_code=2)
    assert "no file" in command.error("usage", "export", "--file", "/dev/null", exit_code=2)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--start yesterday", "--start"),
        ("--end 2026-13-01", "--end"),
        ("--start 2026-11-22 --end 2026-11-21", "must be before --end"),
        ("--start 1h --end 1h", "must be before"),
        ("--start 2999-01-01", "must be before now"),
        ("--start 999999w", "--start"),
    ],
)
def test_bad_periods_are_refused_by_name(command: Command, used: FakePlatform, line: str, named: str) -> None:
    """No time, an empty or reversed period, beyond the calendar: nothing is sent."""
    assert named in command.error("usage", "export", *line.split(), exit_code=2)
    assert not used.control.usage.requests


def test_moments_are_read_as_people_write_them() -> None:
    """Dates, times with and without a zone, how long ago, now."""
    read = {
        "2026-11-22": datetime(2026, 11, 22, tzinfo=UTC),
        "2026-11-22T19:00": datetime(2026, 11, 22, 19, tzinfo=UTC),
        "2026-11-22T19:00:00+02:00": datetime(2026, 11, 22, 17, tzinfo=UTC),
        "2026-11-22T19:00Z": datetime(2026, 11, 22, 19, tzinfo=UTC),
        "90m": NOW - timedelta(minutes=90),
        "24h": NOW - timedelta(hours=24),
        "2w": NOW - timedelta(weeks=2),
        "now": NOW,
    }
    assert {text: moment(text, "--start", NOW) for text in read} == read
    assert period(None, None, NOW) == (None, None)
    with pytest.raises(InvalidArgumentError):
        moment("0001-01-01T00:00+23:00", "--start", NOW)


@pytest.mark.parametrize(
    ("milli_mu", "shown"), [(0, "0.000"), (7, "0.007"), (12_345, "12.345"), (2**62 + 1, "4611686018427387.905")]
)
def test_mu_of_any_size_is_exact(milli_mu: int, shown: str) -> None:
    """No digit is lost where a float would lose it."""
    assert mu_of(milli_mu) == shown
