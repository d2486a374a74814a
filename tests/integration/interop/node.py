"""Clients that run on Node, with exactly the packages that their lock files name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.interop.http_server import run

HERE = Path(__file__).resolve().parent
BUILT = HERE.parents[2] / "build" / "interop"


def node() -> str:
    """Where Node is; skips the test where it, or npm, is not installed."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    return found


async def installed(name: str) -> Path:
    """Installs a client below build/, where that was not done yet.

    Args:
        name: Of its folder here.

    Returns:
        Its program.
    """
    source, built = HERE / name, BUILT / name
    lock = (source / "package-lock.json").read_text()
    if not (built / "node_modules").exists() or (built / "package-lock.json").read_text() != lock:
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir(parents=True)
        for each in ("package.json", "package-lock.json"):
            shutil.copy(source / each, built / each)
        await run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=str(built))
    shutil.copy(source / "client.mjs", built / "client.mjs")
    return built / "client.mjs"
