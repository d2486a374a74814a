"""What people see on a terminal of 80 columns: nothing cut off, no name in pieces."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fairlead.admin.v1 import calibration_pb2
from fairlead.cli.calibrations import screen
from fairlead.cli.commands.events import COLUMNS
from fairlead.cli.commands.profiles import DRIFT, PROFILES
from fairlead.cli.output import Column, Output, Row, message_row
from tests.support.fake_platform.calibration import profile_of

MODEL = "llama-3.1-8b-instruct"
PROFILE = f"{MODEL}/h100/12"
ENGINE = "tritonserver 2.61.0 vllm 0.10.2"
TIME = "2026-02-02T02:40:00Z"
LISTED = {
    **message_row(profile_of(MODEL, 12)),
    "engine": ENGINE,
    "hold_out_error": 0.021,
    "built_in": False,
    "active_for": [MODEL],
    "create_time": TIME,
}
DRIFTING = {
    "model_id": MODEL,
    "profile_id": PROFILE,
    "says": "replicas slow",
    "change": 0.31,
    "tolerance": 0.1,
    "replicas": 4,
    "replicas_drifting": 3,
    "drift_since": TIME,
}
EVENT = {
    "time": TIME,
    "severity": "warning",
    "kind": "CALIBRATION_REFUSED",
    "model_id": MODEL,
    "message": f"Calibration {MODEL}@20260202T024000 was not published: the hold-out error is 9.0 %. Calibrate again.",
}


def _printed(width: int, rows: list[Row], columns: tuple[Column, ...]) -> list[str]:
    output = Output("table")
    written = io.StringIO()
    output.console = Console(file=written, width=width, force_terminal=True, color_system=None)
    output.rows(rows, columns, empty="")
    return written.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize(
    ("row", "columns", "words"),
    [
        (LISTED, PROFILES, (PROFILE, MODEL, "2.1%", TIME, "0.10.2")),
        (DRIFTING, DRIFT, (MODEL, PROFILE, "replicas slow", "+31.0%", "10.0%", TIME)),
        (EVENT, COLUMNS, (TIME, "CALIBRATION_REFUSED", MODEL, "warning", "published:", "again.")),
    ],
)
def test_tables_keep_every_name_whole(
    width: int, row: Row, columns: tuple[Column, ...], words: tuple[str, ...]
) -> None:
    """Whatever the width, each name stands in one piece on one line, and no line is longer than the terminal."""
    lines = _printed(width, [row, row], columns)
    assert max(len(line) for line in lines) <= width
    assert "…" not in "".join(lines)
    for word in words:
        assert sum(word in line for line in lines) >= 2, (word, lines)


def test_wide_enough_stays_a_table() -> None:
    """Rows that fit stand in a table, a line each, below one heading."""
    lines = _printed(160, [DRIFTING, DRIFTING], DRIFT)
    assert len(lines) == 3
    assert len(_printed(80, [DRIFTING, DRIFTING], DRIFT)) == 2 * len(DRIFT) + 1


def test_the_live_view_of_a_calibration_fits() -> None:
    """Bar, times, step, coefficients and what Ctrl-C does are all there on 80 columns."""
    running = calibration_pb2.Calibration(
        model_id=MODEL,
        replica_id=f"{MODEL}-7f2c91",
        hardware="h100",
        engine=ENGINE,
        state=calibration_pb2.CALIBRATION_STATE_RUNNING,
        progress=0.43,
        engine_s=300.0,
        engine_left_s=599.0,
        detail="load 7: 1000 + 200 tokens, 32 at a time",
        profile=profile_of(MODEL, 12),
    )
    written = io.StringIO()
    Console(file=written, width=80).print(screen(running, "Ctrl-C pauses it"))
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    assert max(len(line) for line in lines) <= 80
    text = "\n".join(lines)
    for said in (
        f"{MODEL}-7f2c91",
        "43%",
        "5:00 min of engine time used, about 9:59 min left",
        "hold-out error so far",
    ):
        assert said in text
    assert "g  1.3e-08  ± 10.0%  replica-seconds per output token and token of context" in text
    assert lines[-1] == "Ctrl-C pauses it"
    assert sum("━" in line for line in lines) == 1
