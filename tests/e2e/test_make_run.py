"""`make run` on simulated replicas: it serves, says so, survives its parts' deaths, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

import fairlead
from fairlead.admin.v1 import admin_pb2, admin_pb2_grpc
from tests.e2e.make_run import END_S, START_S, MakeRun
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for leftovers in /proc"),
    pytest.mark.timeout(300),
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run directory; whatever runs from it at the end is killed."""
    folder = tmp_path / "run"
    yield folder
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in stat.read_bytes().decode(errors="replace") and stat.parent.name != str(os.getpid()):
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except OSError:
            continue


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


async def _newcomer_is_served(run: MakeRun) -> None:
    """After etcd came back a tenant can be made, and the routers hear of it and serve it."""
    facts = run.document()
    model = facts["tenants"]["acme"]["model"]
    token = await asyncio.to_thread(Path(facts["admin_token_file"]).read_text)
    metadata = (("authorization", f"Bearer {token.strip()}"),)
    reservation = admin_pb2.Reservation(
        tenant_id="newcomer",
        model_id=model,
        reserved_milli_mu_per_minute=10_000,
        burst_ceiling_milli_mu_per_minute=10_000,
    )
    secret = ""

    async def made() -> bool:
        nonlocal secret
        async with grpc.aio.insecure_channel(facts["admin"]) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            tenant = admin_pb2.Tenant(tenant_id="newcomer")
            request = admin_pb2.CreateTenantRequest(tenant=tenant, request_id="make-newcomer")
            await stub.CreateTenant(request, metadata=metadata)
            await stub.SetReservation(admin_pb2.SetReservationRequest(reservation=reservation), metadata=metadata)
            key = await stub.CreateApiKey(admin_pb2.CreateApiKeyRequest(tenant_id="newcomer"), metadata=metadata)
            secret = key.secret_key
        return True

    await eventually(made, START_S, "the admin API answers again")

    async def served() -> bool:
        async with fairlead.AsyncClient(facts["grpc"], api_key=secret, tls=False) as client:
            return (await client.generate("Hello", model=model, max_tokens=4)).usage.output_tokens == 4

    await eventually(served, START_S, "the newcomer's request is served")


async def test_serves_survives_and_stops(run_dir: Path) -> None:
    """One life: everything serves, a second launcher is sent away, killed parts come back, SIGTERM leaves nothing."""
    run = MakeRun(run_dir, standbys=1)
    await run.serving()
    facts = run.document()
    assert run.document_path.stat().st_mode & 0o777 == 0o600
    assert set(facts["tenants"]) == {"acme", "globex"}
    assert {"launcher", "etcd", "router-1", "router-2", "control-plane-2", "replica-1", "replica-2"} <= set(run.pids())
    assert set(facts["metrics"]) == set(run.pids()) - {"launcher"}
    for url in facts["metrics"].values():
        assert "# HELP" in await asyncio.to_thread(_read, url)
    for tenant in facts["tenants"].values():
        async with fairlead.AsyncClient(facts["grpc"], api_key=tenant["key"], tls=False) as client:
            answer = await client.generate("Hello", model=tenant["model"], max_tokens=4)
            assert answer.usage.output_tokens == 4

    second = MakeRun(run_dir)
    assert await second.ends() == 2
    assert str(run.process.pid) in run.console
    assert facts["http"] in run.console

    before = run.pids()
    killed = ("etcd", "ratelimiter-1", "router-1", "replica-1")
    for name in killed:
        os.kill(before[name], signal.SIGKILL)

    def replaced() -> bool:
        now = run.pids()
        return all(now.get(name, before[name]) != before[name] for name in killed)

    await eventually(replaced, START_S, "killed processes come back")
    assert "ratelimiter-1 ended (killed by SIGKILL); starting it again" in run.console
    await _newcomer_is_served(run)

    run.process.send_signal(signal.SIGTERM)
    assert await run.ends() == 0
    assert run.leftovers() == []
    assert not run.document_path.exists()


async def test_keys_survive_and_sigkill_leaves_nothing(run_dir: Path) -> None:
    """A launcher that is killed takes everything with it; the next one finds data and keys where they were."""
    first = MakeRun(run_dir, replay=2)
    await first.serving()
    facts = first.document()
    await eventually(lambda: "Ctrl-C stops everything" in first.console, START_S)
    assert "received" in first.console
    assert facts["http"] in first.console
    first.process.kill()
    first.process.wait()
    await eventually(lambda: not first.leftovers(), END_S, "everything ends with the launcher")
    assert first.document_path.exists(), "nobody was left to remove it; the next launcher must"

    second = MakeRun(run_dir)
    await eventually(lambda: not second.document_path.exists(), START_S)
    await second.serving()
    assert second.document()["tenants"] == facts["tenants"]
    second.process.send_signal(signal.SIGINT)
    assert await second.ends() == 0
    assert second.leftovers() == []


async def test_taken_port_is_explained(run_dir: Path) -> None:
    """A taken port: which, by whom, what to type; exit code 1, nothing started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = MakeRun(run_dir, http_port=port)
        assert await run.ends() == 1
    assert f"Port {port} (HTTP_PORT) is taken by" in run.console
    assert "make run HTTP_PORT=" in run.console
    assert run.leftovers() == []


async def test_failed_start_shows_why_and_stops_everything(run_dir: Path) -> None:
    """A store that cannot start: the end of its log, what to do, exit code 1, and nothing left running."""
    (run_dir / "etcd" / "member").mkdir(parents=True)
    (run_dir / "etcd" / "member" / "snap").write_text("this is no folder")
    run = MakeRun(run_dir)
    assert await run.ends() == 1
    assert "etcd did not start" in run.console
    assert f"rm -r {run_dir / 'etcd'}" in run.console
    assert run.leftovers() == []


async def test_signal_during_the_start_stops_everything(run_dir: Path) -> None:
    """Ctrl-C before anything serves: an orderly end, nothing left."""
    run = MakeRun(run_dir)
    await eventually(lambda: (run_dir / "logs" / "etcd.log").exists(), START_S)
    run.process.send_signal(signal.SIGINT)
    assert await run.ends() == 0
    assert run.leftovers() == []
