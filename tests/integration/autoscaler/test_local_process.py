"""Replica processes on this machine: real processes, real locks, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from data_plane.autoscaler.actuator import RunningSeat
from data_plane.autoscaler.local_process import LocalProcessActuator
from fairlead.admin.v1 import admin_pb2
from tests.support.waiting import eventually

MODEL = admin_pb2.Model(model_id="m")
SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; print('here', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(600)",
]


def actuator(folder: Path, command: list[str] = SLEEPER, grace_s: float = 5.0) -> LocalProcessActuator:
    return LocalProcessActuator(
        state_dir=folder / "seats",
        log_dir=folder / "logs",
        command=lambda _model, _slot: command,
        working_dir=folder,
        stop_grace_s=grace_s,
    )


async def only_seat(processes: LocalProcessActuator) -> RunningSeat:
    (seat,) = await processes.seats()
    return seat


async def started(processes: LocalProcessActuator, folder: Path) -> RunningSeat:
    """Starts replica-1 and waits until its process is past its first line."""
    await processes.start(MODEL, "replica-1")
    log = folder / "logs" / "m-replica-1.log"
    await eventually(lambda: log.exists() and "here" in log.read_text())
    return await only_seat(processes)


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path
    for seat in await actuator(tmp_path).seats():
        if seat.alive and seat.pid:
            os.kill(seat.pid, signal.SIGKILL)


async def test_starts_in_a_session_of_its_own(folder: Path) -> None:
    """The agent leads its own session, so that a Ctrl-C meant for the launcher does not reach it."""
    seat = await started(actuator(folder), folder)
    assert (seat.slot, seat.start_number, seat.alive) == ("replica-1", 1, True)
    assert os.getsid(seat.pid) == seat.pid


async def test_second_start_of_a_live_seat_is_none(folder: Path) -> None:
    """Two actuators on the same folder (a ghost leader and the new one) never run a seat twice."""
    seat = await started(actuator(folder), folder)
    assert await actuator(folder).start(MODEL, "replica-1") == seat
    assert await only_seat(actuator(folder)) == seat


async def test_race_of_many_starts_has_one_winner(folder: Path) -> None:
    """However many start the same seat at once, one process comes of it."""
    rivals = [actuator(folder) for _ in range(8)]
    await asyncio.gather(*(rival.start(MODEL, "replica-1") for rival in rivals))
    log = folder / "logs" / "m-replica-1.log"
    await eventually(lambda: "here" in log.read_text())
    assert log.read_text().count("here") == 1
    assert (await only_seat(rivals[0])).start_number == 1


async def test_agent_survives_and_is_adopted(folder: Path) -> None:
    """The process that started an agent is killed; another one finds the agent alive, with its number and pid."""
    script = (
        "import asyncio, sys; from pathlib import Path; "
        "from tests.integration.autoscaler import test_local_process as t; "
        "asyncio.run(t.started(t.actuator(Path(sys.argv[1])), Path(sys.argv[1]))); import os; os.kill(os.getpid(), 9)"
    )
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(folder))
    assert await starter.wait() == -signal.SIGKILL
    seat = await only_seat(actuator(folder))
    assert seat.alive
    os.kill(seat.pid, 0)


async def test_death_shows_and_restart_counts(folder: Path) -> None:
    """A killed agent is seen dead, and its seat's next start has the next number."""
    processes = actuator(folder)
    seat = await started(processes, folder)
    os.kill(seat.pid, signal.SIGKILL)

    async def dead() -> bool:
        return not (await only_seat(processes)).alive

    async def second_start() -> bool:
        again = await only_seat(processes)
        return again.alive and again.start_number == 2

    await eventually(dead)
    await processes.start(MODEL, "replica-1")
    await eventually(second_start)


async def test_stop_ends_it_politely(folder: Path) -> None:
    """SIGTERM is enough for an agent that listens; afterwards the seat is dead, and gone once forgotten."""
    processes = actuator(folder)
    await started(processes, folder)
    await processes.stop("m", "replica-1")
    assert not (await only_seat(processes)).alive
    await processes.forget("m", "replica-1")
    assert await processes.seats() == ()


async def test_stop_kills_what_does_not_listen(folder: Path) -> None:
    """An agent that ignores SIGTERM, or is frozen, is killed after its grace."""
    processes = actuator(folder, STUBBORN, grace_s=0.3)
    await started(processes, folder)
    await processes.stop("m", "replica-1")
    assert not (await only_seat(processes)).alive


async def test_live_seat_cannot_be_forgotten(folder: Path) -> None:
    """Forgetting is for the dead."""
    processes = actuator(folder)
    await started(processes, folder)
    await processes.forget("m", "replica-1")
    assert (await only_seat(processes)).alive


async def test_command_that_does_not_exist_is_a_dead_seat(folder: Path) -> None:
    """A broken installation shows as a seat that dies at once, with the reason in its log."""
    processes = actuator(folder, ["/does/not/exist"])
    await processes.start(MODEL, "replica-1")

    async def dead() -> bool:
        return not (await only_seat(processes)).alive

    await eventually(dead)
    assert "FileNotFoundError" in (folder / "logs" / "m-replica-1.log").read_text()


def test_wrapper_is_standard_library_only() -> None:
    """What every agent starts through needs no installed package and no site directory."""
    from data_plane.autoscaler import seat_process

    command = [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({seat_process.__file__!r})"]
    assert subprocess.run(command, capture_output=True).returncode == 0
