"""nghttp2's load generator and curl against the relay's server."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from data_plane.relay.grpc.framing import framed
from tests.integration.interop.grpc_server import INTEROP, interop
from tests.integration.interop.http_server import run
from tests.unit.relay.server.serving import path

HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian's {package})")
    return found


@pytest.mark.parametrize(("method", "message"), [("Once", b"hello"), ("Thrice", 20_000 * b"x")])
async def test_h2load(tmp_path: Path, method: str, message: bytes) -> None:
    """Proves thousands of calls, a hundred at a time on each of four connections, without one failure."""
    program = tool("h2load", "nghttp2-client")
    body = tmp_path / "body"
    body.write_bytes(framed(message))
    async with interop() as served:
        url = f"http://{served.address}{path(method)}"
        told = await run(program, "-n", "2000", "-c", "4", "-m", "100", "-d", str(body), *HEADERS, url)
        assert served.server.tally.calls == 2_000
        assert served.server.tally.refused == 0
    assert re.search(r"2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout", told), told


async def test_h2load_with_small_windows(tmp_path: Path) -> None:
    """Proves that answers larger than a stream's and a connection's window come whole."""
    program = tool("h2load", "nghttp2-client")
    body = tmp_path / "body"
    body.write_bytes(framed(b"5000"))
    async with interop() as served:
        url = f"http://{served.address}/{INTEROP}/Count"
        told = await run(
            program, "-n", "40", "-c", "2", "-m", "20", "-w", "10", "-W", "12", "-d", str(body), *HEADERS, url
        )
    assert "40 succeeded, 0 failed" in told, told


async def test_curl(tmp_path: Path) -> None:
    """Proves an answer with its trailers, and what is told to those who do not speak gRPC."""
    program = tool("curl", "curl")
    body, answer, head = tmp_path / "body", tmp_path / "answer", tmp_path / "head"
    body.write_bytes(framed(b"hello"))
    curl = (program, "-sS", "--http2-prior-knowledge", "--max-time", "60", "-o", str(answer), "-D", str(head))
    async with interop() as served:
        url = f"http://{served.address}{path('Once')}"
        assert await run(*curl, *HEADERS, "--data-binary", f"@{body}", "-w", "%{http_code}", url) == "200"
        assert answer.read_bytes() == framed(b"hello")
        assert "grpc-status: 0" in head.read_text()
        assert await run(*curl, "-w", "%{http_code}", url) == "405"
        assert "allow: POST" in head.read_text()
        # Without content: Debian 12's curl takes an answer that comes before it has sent all for an error.
        assert await run(*curl, "-X", "POST", "-w", "%{http_code}", url) == "415"
        unknown = f"http://{served.address}/test.Relay/Unknown"
        assert await run(*curl, *HEADERS, "-X", "POST", "-w", "%{http_code}", unknown) == "200"
        assert "grpc-status: 12" in head.read_text()
