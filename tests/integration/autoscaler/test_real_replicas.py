"""The whole autoscaler: real etcd, the real process, real agents with simulated engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common import keys
from data_plane.autoscaler.drains import drain
from data_plane.autoscaler.local_process import LocalProcessActuator
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from tests.support.etcd import EtcdServer, PatientStore
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]
READY = engine_pb2.REPLICA_STATE_READY
START_S = 60.0


class Room:
    """One etcd, one folder, and the autoscalers and replicas of a test.

    Args:
        etcd: The store.
        folder: Seat files and logs.
    """

    def __init__(self, etcd: EtcdServer, folder: Path) -> None:
        self.store = PatientStore(etcd.endpoint)
        self.folder = folder
        self._endpoint = etcd.endpoint
        self._autoscalers: list[subprocess.Popen[bytes]] = []

    def start_autoscaler(self) -> subprocess.Popen[bytes]:
        flags = [f"--etcd-endpoint={self._endpoint}", f"--state-dir={self.folder}/seats", f"--log-dir={self.folder}"]
        flags += [
            "--election-ttl-s=2",
            f"--supervisor-pid={os.getpid()}",
            "--stable-window-s=1",
            "--lost-patience-s=2",
            "--agent-stop-grace-s=2",
        ]
        with (self.folder / "autoscaler.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "data_plane.autoscaler", *flags], cwd=ROOT, stdout=log, stderr=log
            )
        self._autoscalers.append(process)
        return process

    async def put_model(self, replicas: int) -> None:
        model = admin_pb2.Model(
            model_id="m",
            engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
            replicas_min=replicas,
            replicas_max=replicas,
        )
        await self.store.put(keys.model("m"), model.SerializeToString())

    async def replicas(self) -> list[engine_pb2.Replica]:
        listing = await self.store.list(keys.REPLICAS)
        found = [engine_pb2.Replica.FromString(entry.value) for entry in listing.entries]
        return sorted(found, key=lambda replica: replica.slot)

    async def ready(self, *slots: str) -> bool:
        return tuple(replica.slot for replica in await self.replicas() if replica.state == READY) == slots

    async def close(self) -> None:
        for process in self._autoscalers:
            process.kill()
            process.wait()
        agents = LocalProcessActuator(
            state_dir=self.folder / "seats",
            log_dir=self.folder,
            command=lambda _model, _slot: [],
            working_dir=ROOT,
            stop_grace_s=0.0,
        )
        for seat in await agents.seats():
            await agents.stop(seat.model_id, seat.slot)
        await self.store.close()


@pytest.fixture
async def room(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(etcd, tmp_path)
    try:
        yield room
    finally:
        await room.close()


async def test_replicas_outlive_the_autoscaler_and_are_adopted(room: Room) -> None:
    """Killed autoscaler: replicas serve on, its successor adopts them, starts none twice, and replaces a killed one."""
    await room.put_model(2)
    first = room.start_autoscaler()
    await eventually(lambda: room.ready("replica-1", "replica-2"), START_S)
    before = await room.replicas()
    first.kill()
    first.wait()
    os.kill(before[0].agent_pid, signal.SIGKILL)
    room.start_autoscaler()

    async def replaced() -> bool:
        now = await room.replicas()
        fresh = [replica for replica in now if replica.slot == "replica-1" and replica.state == READY]
        return any(replica.agent_pid != before[0].agent_pid for replica in fresh)

    await eventually(replaced, START_S)
    kept = [replica for replica in await room.replicas() if replica.slot == "replica-2"]
    assert [replica.agent_pid for replica in kept] == [before[1].agent_pid]


async def test_drained_replica_is_replaced_then_stopped(room: Room) -> None:
    """A drain from outside: another seat takes over, and the drained agent is ended and its seat forgotten."""
    await room.put_model(1)
    room.start_autoscaler()
    await eventually(lambda: room.ready("replica-1"), START_S)
    (old,) = await room.replicas()
    await drain(old)
    await eventually(lambda: room.ready("replica-2"), START_S)
    await eventually(lambda: not (room.folder / "seats" / "m" / "replica-1.json").exists(), START_S)
    await eventually(lambda: _gone(old.agent_pid), START_S)


def _gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


async def test_frozen_agent_is_restarted(room: Room) -> None:
    """An agent that is frozen loses its registration; after the patience it is killed and its seat started again."""
    await room.put_model(1)
    room.start_autoscaler()
    await eventually(lambda: room.ready("replica-1"), START_S)
    (frozen,) = await room.replicas()
    os.kill(frozen.agent_pid, signal.SIGSTOP)
    await eventually(lambda: _gone(frozen.agent_pid), 90.0)
    await eventually(lambda: room.ready("replica-1"), START_S)
