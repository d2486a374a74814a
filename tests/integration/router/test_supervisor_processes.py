"""The supervisor with real, small workers: every connection is answered, whatever becomes of the workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.waiting import PROCESS_START_S, eventually

CHECKOUT = Path(__file__).resolve().parents[3]
SLOTS = 2

pytestmark = pytest.mark.timeout(240)


class Crew:
    """A supervisor process and what it says.

    Args:
        folder: Its state_dir, and its log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_port(), free_port()
        self.ops_port = free_port()
        self.log_path = folder / "log"
        settings = {
            "workers": SLOTS,
            "instance-id": "r",
            "state-dir": folder,
            "grpc-port": self.ports[0],
            "http-port": self.ports[1],
            "ops-port": self.ops_port,
            "drain-grace-s": 20,
            "worker-start-s": 60,
            "worker-hang-s": 3,
            "supervisor-pid": os.getpid(),
        }
        flags = [f"--{name}={value}" for name, value in settings.items()]
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", "tests.support.fake_crew", *flags]
            self.process = subprocess.Popen(command, cwd=CHECKOUT, stderr=log)

    def log(self) -> str:
        return self.log_path.read_text()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}{path}", timeout=5) as response:
            return str(response.read().decode())

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} ([\d.e+-]+)$", self.get("/metrics"), re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    async def ready(self) -> bool:
        try:
            return await asyncio.to_thread(self.get, "/readyz") == "ok\n"
        except (urllib.error.URLError, OSError):
            return False

    async def has_rolled(self, times: int, outcome: str = "done") -> None:
        name = f'fairlead_supervisor_rolls_total{{outcome="{outcome}"}}'

        async def rolled() -> bool:
            return await asyncio.to_thread(self.metric, name) == times

        await eventually(rolled, 3 * PROCESS_START_S, f"{times} rolls are {outcome}")

    async def ask(self, port: int, seconds: float = 0.0) -> tuple[str, int]:
        """A connection of its own: which instance and process answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"{seconds}\n".encode())
            instance, pid = (await reader.readline()).decode().split()
            return instance, int(pid)
        finally:
            writer.close()

    async def workers(self) -> dict[str, int]:
        """Every worker that answers, seen by asking until all slots have."""
        found: dict[str, int] = {}

        async def all_seen() -> bool:
            found.update([await self.ask(self.ports[0])])
            return len(found) == SLOTS

        await eventually(all_seen, 30.0, "connections reach every worker")
        return found

    async def ended(self, timeout_s: float = 60.0) -> int:
        return await asyncio.to_thread(self.process.wait, timeout_s)


@pytest.fixture
async def crew(tmp_path: Path) -> AsyncIterator[Crew]:
    made = Crew(tmp_path)
    try:
        await eventually(made.ready, 2 * PROCESS_START_S, "the crew is ready")
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        print(made.log()[-6000:])
        for pid in started(made.log()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def started(log: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"worker started .*?pid=(\d+)", log)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.asynccontextmanager
async def asking(crew: Crew, lanes: int = 4) -> AsyncIterator[Counter[str]]:
    """Connects and asks on both ports without a pause; a connection that fails or hangs fails the test."""
    answers: Counter[str] = Counter()
    done = asyncio.Event()

    async def lane(port: int, seconds: float) -> None:
        while not done.is_set():
            async with asyncio.timeout(30.0):
                answers[(await crew.ask(port, seconds))[0]] += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(lanes):
            tasks.create_task(lane(crew.ports[number % 2], 0.3 if number < 2 else 0.0))
        yield answers
        done.set()


async def test_rolling_restarts_lose_no_connection(crew: Crew) -> None:
    """SIGHUP twice under connections without a pause: each is answered, and no process of before is left."""
    before = await crew.workers()
    async with asking(crew) as answers:
        crew.process.send_signal(signal.SIGHUP)
        await crew.has_rolled(1)
        between = await crew.workers()
        crew.process.send_signal(signal.SIGHUP)
        await crew.has_rolled(2)
    assert sorted(before) == ["r-1", "r-2"]
    assert sorted(between) == ["r-1b", "r-2b"]
    after = await crew.workers()
    assert sorted(after) == ["r-1", "r-2"]
    assert not any(alive(pid) for pid in (*before.values(), *between.values()))
    assert {*before, *between} <= answers.keys()


async def test_a_killed_worker_is_replaced_and_its_connections_are_answered_meanwhile(crew: Crew) -> None:
    """SIGKILL: what it was answering breaks off; every connection after that is answered, by the other one at first."""
    before = await crew.workers()
    victim = before["r-1"]
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: not alive(victim), 10.0)
    async with asking(crew) as answers:
        # New ones of the dead worker's share wait, at most until the other one has been told.
        await eventually(lambda: answers["r-2"] > 20, 30.0, "the other worker answers")
        await eventually(lambda: answers["r-1"] > 0, PROCESS_START_S, "the dead worker's slot answers again")
    assert (await crew.workers())["r-1"] != victim
    assert crew.metric('fairlead_supervisor_worker_ends_total{reason="died"}') == 1
    assert await crew.ready()


async def test_a_hanging_worker_is_killed_and_replaced(crew: Crew) -> None:
    """A worker whose loop stands still for worker_hang_s is replaced."""
    before = await crew.workers()
    trigger = crew.folder / "hang-r-2"
    trigger.touch()
    await eventually(lambda: not alive(before["r-2"]), 30.0, "the hanging worker is killed")
    trigger.unlink()
    await eventually(lambda: len(started(crew.log())) == 3, PROCESS_START_S)
    await eventually(crew.ready, PROCESS_START_S)
    after = await crew.workers()
    assert after["r-1"] == before["r-1"]
    assert after["r-2"] != before["r-2"]
    assert crew.metric('fairlead_supervisor_worker_ends_total{reason="silent"}') >= 1


async def test_a_new_worker_that_cannot_start_leaves_the_old_ones(crew: Crew) -> None:
    """SIGHUP with something that breaks every new worker: nothing changes for clients, and it is said once."""
    before = await crew.workers()
    broken = crew.folder / "broken"
    broken.touch()
    async with asking(crew):
        crew.process.send_signal(signal.SIGHUP)
        await crew.has_rolled(1, "failed")
    assert await crew.workers() == before
    assert crew.log().count("rolling restart given up") == 1
    assert len(started(crew.log())) == 3
    broken.unlink()
    crew.process.send_signal(signal.SIGHUP)
    await crew.has_rolled(1)


async def test_a_worker_that_dies_at_every_start_does_not_spin(crew: Crew) -> None:
    """The other worker serves for both, the pauses grow, and the log says it."""
    before = await crew.workers()
    (crew.folder / "broken").touch()
    os.kill(before["r-1"], signal.SIGKILL)
    await eventually(lambda: "failures=3 again_in_s=1" in crew.log(), 2 * PROCESS_START_S, "it fails again and again")
    assert "worker ends again and again" in crew.log()
    for _ in range(20):
        assert await crew.ask(crew.ports[1]) == ("r-2", before["r-2"])
    assert await crew.ready()
    (crew.folder / "broken").unlink()
    assert len(await crew.workers()) == SLOTS


async def test_the_end_drains_everything(crew: Crew) -> None:
    """SIGTERM: what was asked is answered, nobody new is taken, and every process has ended."""
    workers = await crew.workers()
    asked = [asyncio.create_task(crew.ask(port, 6.0)) for port in crew.ports for _ in range(8)]
    await asyncio.sleep(0.5)
    crew.process.send_signal(signal.SIGTERM)

    async def refused() -> bool:
        try:
            await crew.ask(crew.ports[0])
        except OSError:
            return True
        return False

    await eventually(refused, 10.0, "new connections are refused")
    assert not any(task.done() for task in asked), "they were refused only because nobody was there any more"
    assert {instance for instance, _ in await asyncio.gather(*asked)} == set(workers)
    assert await crew.ended() == 0
    assert not any(alive(pid) for pid in workers.values())


async def test_workers_end_without_their_supervisor(crew: Crew) -> None:
    """SIGKILL of the supervisor: the workers answer on for some seconds, then drain and end by themselves."""
    workers = await crew.workers()
    crew.process.kill()
    crew.process.wait()
    killed_s = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - killed_s < 2.0:
        await crew.ask(crew.ports[0])
    await eventually(lambda: not any(alive(pid) for pid in workers.values()), 60.0, "the workers are gone")


async def test_one_page_holds_the_metrics_of_all(crew: Crew) -> None:
    """Prometheus finds every worker's samples at the supervisor, told apart by a label."""
    page = await asyncio.to_thread(crew.get, "/metrics")
    assert page.count("# TYPE a_total counter") == 1
    for worker in ("1", "2"):
        assert f'a_total{{worker="{worker}"}} 1.0' in page
        assert f'a_total{{worker="{worker}",b="c"}} 2.0' in page
    assert 'fairlead_supervisor_workers{phase="ready"} 2.0' in page


async def test_settings_that_no_worker_can_serve_with_end_the_supervisor(tmp_path: Path) -> None:
    """Where the first worker says that it cannot serve, so does the supervisor: no log of a loop to read."""
    (tmp_path / "broken").touch()
    crew = Crew(tmp_path)
    assert await crew.ended(2 * PROCESS_START_S) == 1
    assert "this worker is broken" in crew.log()
    assert len(started(crew.log())) == SLOTS
