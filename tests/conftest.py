"""Fixtures every test can use, the order in which files run, and what starting hundreds of processes costs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from common import native
from tests.support import schedule
from tests.support.etcd import EtcdServer

# The sources are tested unless FAIRLEAD_NATIVE=on asks for what `make native` has made of them. Here, before anything
# else imports what may be compiled; processes that a test starts inherit it.
NATIVE = native.install() if os.environ.setdefault(native.SWITCH, "off") != "off" else ""
if NATIVE.startswith("off"):
    pytest.exit(f"native {NATIVE}", returncode=1)

# How long an example takes says more about the machine than about what is tested.
settings.register_profile(
    "any-machine", settings(settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
)
settings.load_profile("any-machine")

TESTS = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled modules below build/, as half of a service's start is compiling; lets the order below count."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(TESTS.parent / "build" / "pycache"))
    # pytest-xdist would hand out files by their number of tests, and the longest files have the fewest.
    config.option.loadscopereorder = False
    schedule.step_back(config)


def pytest_report_header() -> str:
    """Says what is tested."""
    return f"native {NATIVE}" if NATIVE else "the sources, interpreted"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> schedule.FromBothEnds | None:
    """Hands out whole files, to one worker from the other end of their order."""
    return schedule.FromBothEnds(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long rooms first: a long file that came last would run beside idle workers."""
    items.sort(key=lambda item: schedule.rank(item.path.relative_to(TESTS)))


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """A fresh real etcd server."""
    server = EtcdServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()
