"""Fixtures every test can use, the order in which files run, and what starting hundreds of processes costs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from common import native
from tests.support import schedule
from tests.support.etcd import EtcdServer

# Tests import the sources, unless FAIRLEAD_NATIVE=on asks for what `make native` has made of them. Here,
# before anything else imports what may be compiled. Router processes that tests start choose for themselves.
NATIVE = native.install() if os.environ.get(native.SWITCH) == "on" else ""
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


def pytest_report_header() -> list[str]:
    """Says what is tested, and what a router process that is asked says of itself."""
    ask = "from common import native; print(native.install())"
    asked = subprocess.run([sys.executable, "-c", ask], cwd=TESTS.parent, capture_output=True, text=True, check=True)
    here = f"native {NATIVE}" if NATIVE else "the sources, interpreted"
    return [f"imported by tests: {here}", f"router processes: native {asked.stdout.strip()}"]


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
