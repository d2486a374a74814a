"""The nursery that tests start services with: its processes begin, run and end as those of `python -m` do."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.nursery import ServiceProcess
from tests.support.waiting import eventually

BEGUN = "tests.integration.common.begun"


def start(log: Path, *arguments: str) -> ServiceProcess:
    with log.open("ab") as file:
        return ServiceProcess(BEGUN, list(arguments), stderr=file)


def test_it_runs_as_the_main_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line, environment of now, exit code, what is registered for the end; nothing of ours was there before."""
    monkeypatch.setenv("FAIRLEAD_BEGUN", "now")
    log = tmp_path / "log"
    assert start(log, "--one", "7").wait(20) == 7
    assert log.read_text().splitlines() == ["main: --one 7", "environment: now", "of ours: []", "at exit"]


def test_a_signal_ends_it(tmp_path: Path) -> None:
    """A killed process has the signal's negative number as its code, and one that runs has none; others go on."""
    log = tmp_path / "log"
    first, second = start(log, "wait"), start(log, "wait")
    assert (first.poll(), second.poll()) == (None, None)
    first.kill()
    assert first.wait(20) == -signal.SIGKILL
    assert second.poll() is None
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == -signal.SIGTERM
    second.send_signal(signal.SIGTERM)  # to nobody


async def test_ctrl_c_reaches_it(tmp_path: Path) -> None:
    """What the nursery itself ignores is a KeyboardInterrupt to its children."""
    log = tmp_path / "log"
    process = start(log, "wait", "aloud")
    await eventually(lambda: "waiting" in log.read_text())
    process.send_signal(signal.SIGINT)
    process.wait(20)
    assert "KeyboardInterrupt" in log.read_text()
