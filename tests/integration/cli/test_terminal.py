"""The command on a real terminal: progress, live views, questions, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.admin.v1 import calibration_pb2
from tests.support.fake_platform import FakePlatform

ROOT = Path(__file__).resolve().parents[3]
CODE = "from fairlead.cli import main; main()"


class Terminal:
    """A `fairlead` process whose input and output are a pseudo-terminal."""

    def __init__(self, environment: dict[str, str], folder: Path, *args: str) -> None:
        self._end, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, *args],
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=folder,
            env={
                **os.environ,
                "TERM": "xterm",
                "COLUMNS": "160",
                "LINES": "50",
                "PYTHONPATH": str(ROOT),
                **environment,
            },
            start_new_session=True,
            # A background job inherits SIGINT ignored; a person's terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(other)
        self._shown = ""

    def wait_for(self, text: str, timeout_s: float = 20.0) -> str:
        """Reads until `text` is shown; returns everything shown so far, without control sequences."""
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"not shown within {timeout_s} s: {text!r}; shown: {self.shown[-2000:]!r}"
            if not self._read(left):
                assert text in self.shown, f"ended without {text!r}; shown: {self.shown[-2000:]!r}"
        return self.shown

    @property
    def shown(self) -> str:
        return re.sub(r"\x1b[\[?][0-9;?]*[a-zA-Z]", "", self._shown)

    def _read(self, timeout_s: float) -> bool:
        if select.select([self._end], [], [], timeout_s)[0]:
            try:
                data = os.read(self._end, 65536)
            except OSError:  # the other end is closed
                return False
            self._shown += data.decode(errors="replace")
            return bool(data)
        return True

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def end(self) -> int:
        """Reads to the end and returns the exit code."""
        while self._read(20.0):
            if self.process.poll() is not None and not select.select([self._end], [], [], 0)[0]:
                break
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._end)


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform() as running:
        running.control.seed()
        yield running


@pytest.fixture
def terminal(platform: FakePlatform, tmp_path: Path) -> Iterator[object]:
    """Starts `fairlead` on a terminal, pointed at a fake platform."""
    (tmp_path / "token").write_text(platform.control.token)
    environment = {
        "FAIRLEAD_ADDRESS": platform.address,
        "FAIRLEAD_ADMIN_ADDRESS": platform.admin_address,
        "FAIRLEAD_ADMIN_TOKEN_FILE": str(tmp_path / "token"),
        "FAIRLEAD_API_KEY": "fl-key-alpha",
        "HOME": str(tmp_path),
    }
    started: list[Terminal] = []

    def start(*args: str) -> Terminal:
        started.append(Terminal(environment, tmp_path, *args))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_deleting_asks_and_no_means_no(terminal, platform: FakePlatform) -> None:
    """On a terminal the question is asked; n leaves everything as it was, y deletes."""
    refused = terminal("tenants", "delete", "alpha")
    refused.wait_for("Delete tenant alpha with its keys and reservations? [y/N]")
    refused.type("n\n")
    assert refused.end() == 130
    assert "alpha" in platform.control.tenants
    agreed = terminal("tenants", "delete", "alpha")
    agreed.wait_for("[y/N]")
    agreed.type("y\n")
    assert agreed.end() == 0
    assert "alpha" not in platform.control.tenants


def test_a_policy_file_is_shown_in_colour_and_asks_before_it_deletes(
    terminal, platform: FakePlatform, tmp_path: Path
) -> None:
    """What would change is green, yellow and red; n leaves everything as it was, y applies it."""
    sold = platform.control.reservations["tiny", "alpha"]
    platform.control.tenants["beta"] = type(platform.control.tenants["alpha"])(tenant_id="beta")
    platform.control.reservations["tiny", "old"] = type(sold)(
        tenant_id="old", model_id="tiny", reserved_milli_mu_per_minute=1_000, etag="1"
    )
    (tmp_path / "quotas.toml").write_text(
        "".join(f'[[quota]]\ntenant = "{name}"\nmodel = "tiny"\nreserved = 20\n' for name in ("alpha", "beta"))
    )
    line = ("quota", "apply", "quotas.toml", "--delete-others")
    tried = terminal(*line, "--dry-run")
    assert tried.end() == 0
    for colour, text in ((32, "+ beta on tiny"), (33, "~ alpha on tiny"), (31, "- old on tiny")):
        assert f"\x1b[{colour}m{text}" in tried._shown, tried._shown
    refused = terminal(*line)
    refused.wait_for("Delete the quotas of old on tiny? These tenants lose access. [y/N]")
    refused.type("n\n")
    assert refused.end() == 130
    assert set(platform.control.reservations) == {("tiny", "alpha"), ("tiny", "old")}
    agreed = terminal(*line)
    agreed.wait_for("[y/N]")
    agreed.type("y\n")
    assert agreed.end() == 0
    assert set(platform.control.reservations) == {("tiny", "alpha"), ("tiny", "beta")}


def test_a_conversation_turn_by_turn(terminal, platform: FakePlatform) -> None:
    """Each turn carries the whole conversation and one session; Ctrl-D ends it."""
    talk = terminal("chat", "--max-tokens", "2")
    talk.wait_for("end with Ctrl-D")
    talk.type("first question\n")
    talk.wait_for("2 out")
    talk.type("second question\n")
    shown = talk.wait_for("replica replica-1")
    assert "w0 w1" in shown
    while len([seen for seen in platform.router.seen if seen.method == "StreamGenerate"]) < 2:
        talk.wait_for("second question")
        talk._read(0.1)
    talk.type("\x04")
    assert talk.end() == 0
    first, second = [seen.request for seen in platform.router.seen if seen.method == "StreamGenerate"]
    assert [turn.content for turn in second.chat.messages] == ["first question", "w0 w1", "second question"]
    assert first.session_id == second.session_id != ""
    assert first.request_id != second.request_id


def test_a_replay_shows_its_progress_and_ends_cleanly_on_interrupt(terminal, platform: FakePlatform) -> None:
    """Ctrl-C cancels what is in flight and prints the table of what was sent."""
    platform.router.hold = asyncio.Event()
    running = terminal("replay", "--speed", "1")
    running.wait_for("in flight;")
    while not any(seen.method == "StreamGenerate" for seen in platform.router.seen):
        running._read(0.1)
    running.process.send_signal(signal.SIGINT)
    shown = running.wait_for("interrupted: the rest of the trace was not sent")
    assert running.end() == 0
    assert "TTFT ms" in shown
    assert "difference 0: as it must be" in shown
    assert "Traceback" not in shown


def test_top_refreshes_until_interrupted(terminal, platform: FakePlatform) -> None:
    """The view changes with the platform, and Ctrl-C ends it without a traceback."""
    view = terminal("top", "--interval", "0.2")
    view.wait_for("tiny-r1")
    platform.control.replicas["tiny-r2"] = type(platform.control.replicas["tiny-r1"])(
        replica_id="tiny-r2", model_id="tiny"
    )
    view.wait_for("tiny-r2")
    view.process.send_signal(signal.SIGINT)
    assert view.end() == 130
    assert "Traceback" not in view.shown


def test_an_interrupt_stops_a_generation(terminal, platform: FakePlatform) -> None:
    """Ctrl-C in the middle of a text cancels the request at the router."""
    platform.router.hold = asyncio.Event()
    talking = terminal("generate", "hello")
    talking.wait_for("w0")
    talking.process.send_signal(signal.SIGINT)
    assert talking.end() == 130
    assert "interrupted" in talking.shown
    deadline = time.monotonic() + 10
    while not platform.router.cancelled and time.monotonic() < deadline:
        talking._read(0.05)
    assert len(platform.router.cancelled) == 1


def test_a_calibration_is_paused_by_one_interrupt_and_goes_on(terminal, platform: FakePlatform) -> None:
    """The bar and the coefficients are shown; Ctrl-C pauses on the server; the same command goes on to the end."""
    fake = platform.control.calibration
    fake.hold_after = 2
    running = terminal("calibrate", "tiny")
    shown = running.wait_for("load 2 of 4")
    for said in ("calibrating tiny on tiny-r1", "0:40 min left", "Ctrl-C pauses it"):
        assert said in running.wait_for(said)
    assert "━" in shown
    running.process.send_signal(signal.SIGINT)
    running.wait_for("to go on: fairlead calibrate tiny")
    assert running.end() == 130
    assert "Traceback" not in running.shown
    assert fake.calibrations["tiny@1"].state == calibration_pb2.CALIBRATION_STATE_PAUSED
    fake.hold_after = None
    resumed = terminal("calibrate", "tiny")
    resumed.wait_for("requests to tiny are priced with it")
    assert "2 loads are measured already" in resumed.shown
    assert resumed.end() == 0


def test_a_second_interrupt_leaves_a_calibration_at_once(terminal, platform: FakePlatform) -> None:
    """A pause that takes its time is left by a second Ctrl-C, without a traceback."""
    fake = platform.control.calibration
    fake.hold_after, fake.pause_is_slow = 1, True
    running = terminal("calibrate", "tiny")
    running.wait_for("load 1 of 4")
    running.process.send_signal(signal.SIGINT)
    running.wait_for("Ctrl-C leaves at once")
    running.process.send_signal(signal.SIGINT)
    running.wait_for("left at once")
    assert running.end() == 130
    assert "Traceback" not in running.shown


def test_publishing_a_refused_profile_asks(terminal, platform: FakePlatform) -> None:
    """The question names the error; n leaves the calibration refused."""
    fake = platform.control.calibration
    fake.add_refused("tiny")
    asked = terminal("calibrations", "publish", "tiny")
    asked.wait_for("off by 9.0% on lengths it was not fitted on? [y/N]")
    asked.type("n\n")
    assert asked.end() == 130
    assert fake.calibrations["tiny@1"].state == calibration_pb2.CALIBRATION_STATE_REFUSED
