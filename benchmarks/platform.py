"""A local platform for a benchmark: started, described, scraped, stopped."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.report import ROOT
from fairlead.admin.v1 import admin_pb2, admin_pb2_grpc

START_S_MAX = 180.0


@dataclass(frozen=True, slots=True)
class LivePlatform:
    """A platform that serves.

    Attributes:
        grpc: host:port of the routers.
        admin: host:port of the admin API.
        admin_token: Its token.
        tenants: API key by tenant.
        model: The demo tenants' model.
        router_metrics: URL of each router's metrics.
    """

    grpc: str
    admin: str
    admin_token: str
    tenants: dict[str, str]
    model: str
    router_metrics: tuple[str, ...]

    async def set_quota(self, tenant_id: str, milli_mu_per_minute: int) -> None:
        """Reserves this much for a tenant, with no burst beyond it."""
        reservation = admin_pb2.Reservation(
            tenant_id=tenant_id,
            model_id=self.model,
            reserved_milli_mu_per_minute=milli_mu_per_minute,
            burst_ceiling_milli_mu_per_minute=milli_mu_per_minute,
        )
        async with grpc.aio.insecure_channel(self.admin) as channel:
            await admin_pb2_grpc.AdminServiceStub(channel).SetReservation(
                admin_pb2.SetReservationRequest(reservation=reservation),
                metadata=(("authorization", f"Bearer {self.admin_token}"),),
            )

    def scrape(self) -> dict[str, float]:
        """Sums every sample of all routers' metrics.

        Returns:
            Value by "name" and, where a sample has outcome and reason labels, also by "name:outcome" and
            "name:outcome:reason".
        """
        sums: dict[str, float] = {}
        for url in self.router_metrics:
            with urllib.request.urlopen(url, timeout=5) as response:
                text = response.read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
                    outcome, reason = sample.labels.get("outcome"), sample.labels.get("reason")
                    for name in (f"{sample.name}:{outcome}", f"{sample.name}:{outcome}:{reason}") if outcome else ():
                        sums[name] = sums.get(name, 0.0) + sample.value
        return sums


@asynccontextmanager
async def platform(engine: str, replicas: int) -> AsyncIterator[LivePlatform]:
    """Runs the local platform on free ports in a folder of its own.

    Args:
        engine: "triton" or "sim".
        replicas: How many.

    Yields:
        The platform, once it serves.

    Raises:
        RuntimeError: It did not come up; the message ends with what it printed.
    """
    run_dir = ROOT / "build" / "bench" / f"run-{engine}"
    # From nothing: quotas and keys of an earlier run would be measured with it.
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    described = run_dir / "platform.json"
    command = [sys.executable, "-m", "deploy.local", "--engine", engine, "--replicas", str(replicas)]
    command += ["--http-port", "0", "--grpc-port", "0", "--admin-port", "0", "--replay", "0", "--run-dir", str(run_dir)]
    console = run_dir / "console.log"
    process = _spawn(command, console)
    try:
        await asyncio.to_thread(_wait, process, described, console)
        yield _read(described)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 60)
        except subprocess.TimeoutExpired:
            process.kill()


def _spawn(command: list[str], console: Path) -> subprocess.Popen[bytes]:
    with console.open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)


def _wait(process: subprocess.Popen[bytes], described: Path, console: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while not described.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the platform did not come up:\n{console.read_text()[-3000:]}")
        time.sleep(0.1)


def _read(described: Path) -> LivePlatform:
    facts = json.loads(described.read_text())
    tenants = {name: tenant["key"] for name, tenant in facts["tenants"].items()}
    model = next(iter(facts["tenants"].values()))["model"]
    metrics = tuple(url for name, url in facts["metrics"].items() if name.startswith("router"))
    token = Path(facts["admin_token_file"]).read_text().strip()
    return LivePlatform(facts["grpc"], facts["admin"], token, tenants, model, metrics)
