"""What operators see: readiness without a store, and metrics."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import pytest

from tests.integration.control.side import MODEL, Router, Side
from tests.support.ports import free_port
from tests.support.waiting import eventually


async def fetch(port: int, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    return await asyncio.to_thread(get)


async def test_started_before_the_store(side: Side) -> None:
    """Proves that services start without etcd, live but not ready, serve once it is there, and report in metrics."""
    await side.put_model()
    await side.put_replica("r1")
    await side.put_reservation("a", 60_000)
    side.etcd.kill()
    ports = {package: free_port() for package in ("capacity", "ratelimiter", "control_plane")}
    for package, port in ports.items():
        side.start(package, package, "--ops-port", str(port))

    async def answers(port: int, path: str, status: int) -> bool:
        return (await fetch(port, path))[0] == status

    for port in ports.values():
        await eventually(lambda port=port: answers(port, "/livez", 200), 30.0)  # type: ignore[misc]
        assert await fetch(port, "/readyz") == (503, "the store has not been read yet\n")
    side.etcd.start()
    for port in ports.values():
        await eventually(lambda port=port: answers(port, "/readyz", 200), 30.0)  # type: ignore[misc]
    router = Router(side, "router-1")

    async def leased() -> bool:
        return await router.report({"a": 1_000}) and router.rate("a") == 60_000

    await eventually(leased, 30.0)
    allocator, limiter = [(await fetch(ports[package], "/metrics"))[1] for package in ("capacity", "ratelimiter")]
    assert f'fairlead_capacity_have_milli_mu_per_minute{{model="{MODEL}"}} 100000.0' in allocator
    assert f'fairlead_capacity_granted_milli_mu_per_minute{{model="{MODEL}",tenant="a"}} 60000.0' in allocator
    assert "fairlead_capacity_leader 1.0" in allocator
    assert f'fairlead_ratelimiter_leased_milli_mu_per_minute{{model="{MODEL}",tenant="a"}} 60000.0' in limiter
    assert 'fairlead_ratelimiter_reports_total{outcome="granted"}' in limiter


@pytest.mark.parametrize("package", ["capacity", "ratelimiter"])
async def test_bad_flags_are_refused_by_name(side: Side, package: str) -> None:
    """Proves that a wrong setting ends the process with its name."""
    process = side.start(package, package, "--debounce-ms", "-1")
    assert await process.ended() == 2
    assert "--debounce-ms: -1 must be at least 0" in process.log()
