"""Labs, shared by the tests of a module and made well again before each; logs of a failed test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.lab import Lab
from tests.faults.network import missing_for_namespaces

_LOG_CHARACTERS = 3_000
_labs: list[Lab] = []


def started(folder: Path, **options: object) -> Iterator[Lab]:
    """A lab that serves, ended afterwards."""
    lab = Lab(folder, **options)  # type: ignore[arg-type]  # passed through
    _labs.append(lab)
    try:
        asyncio.run(lab.start())
        yield lab
    finally:
        _labs.remove(lab)
        lab.close()


def namespaces_or_skip() -> None:
    """Skips where connections cannot be cut; in CI they must be."""
    why_not = missing_for_namespaces()
    if why_not is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must be able to cut connections: {why_not}")
    pytest.skip(f"cannot cut connections: {why_not}")


@pytest.fixture(scope="package")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One platform for all tests that run side by side in one process."""
    yield from started(tmp_path_factory.mktemp("lab"), namespaces=missing_for_namespaces() is None)


@pytest.fixture
async def lab(shared_lab: Lab) -> Lab:
    """The shared platform, well."""
    await shared_lab.recover()
    return shared_lab


@pytest.fixture
def split_lab(lab: Lab) -> Lab:
    """The shared platform where every process has a host of its own, well; skips where there is no such thing."""
    namespaces_or_skip()
    return lab


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Adds the ends of the processes' logs to the report of a failed test."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's result
    if not report.failed:
        return
    for lab in _labs:
        for process in lab.processes:
            lines = [line for line in process.log().splitlines() if " refused " not in line]
            report.sections.append((f"log of {process.name}", "\n".join(lines)[-_LOG_CHARACTERS:]))
