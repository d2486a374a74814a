"""The house's rules that a machine can check: who imports whom, pure cores, module sizes, commented protos."""

from __future__ import annotations

import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SERVICES = ("ratelimiter", "capacity", "control_plane", "data_plane", "engines")
SHARED = ("model_units", "common", "fairlead")
MODULE_LINES_MAX = 400
IMPURE = {"asyncio", "time", "random", "socket", "os", "grpc", "aiohttp", "secrets", "threading", "subprocess"}


def modules(room: str) -> list[Path]:
    return [path for path in sorted((ROOT / room).rglob("*.py")) if "_pb2" not in path.name]


IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+(\w+)[\w.]*[ \t]+import\b|import[ \t]+(\w+))", re.MULTILINE)


def imported(path: Path) -> set[str]:
    """Top-level packages a module imports, lazily or not."""
    return {first or second for first, second in IMPORT.findall(path.read_text())}


@pytest.mark.parametrize("room", SERVICES)
def test_services_never_import_each_other(room: str) -> None:
    """A service imports itself and the shared rooms, never another service."""
    for path in modules(room):
        assert not imported(path) & (set(SERVICES) - {room}), path


def test_shared_rooms_know_no_service() -> None:
    """common, model_units and the wheel import no service; the wheel imports nothing of the house at all."""
    for room in SHARED:
        for path in modules(room):
            assert not imported(path) & set(SERVICES), path
    for path in modules("fairlead"):
        assert not imported(path) & {"common", "model_units", "simulation", "tests"}, path
    for path in modules("model_units"):
        assert not imported(path) & {"common"}, path


def test_cores_are_pure() -> None:
    """Nothing below a core/ folder or in model_units does I/O, reads a clock or draws randomness."""
    cores = [path for room in SERVICES for path in modules(room) if "core" in path.relative_to(ROOT).parts]
    assert len(cores) > 10
    for path in [*cores, *modules("model_units")]:
        assert not imported(path) & IMPURE, path


def test_modules_stay_small() -> None:
    """No module outgrows one idea."""
    for room in (*SERVICES, *SHARED, "simulation", "deploy", "tools", "benchmarks"):
        for path in modules(room):
            assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX, path


def test_everything_in_the_protos_is_commented() -> None:
    """Every field, enum value, message and method has a comment in front of it."""
    declaration = re.compile(
        r"^\s*((optional |repeated )?[\w.]+ \w+ = \d+;|[A-Z_]+ = \d+;|(message|enum|service|rpc|oneof) )"
    )
    for path in sorted((ROOT / "protos").rglob("*.proto")):
        lines = path.read_text().splitlines()
        for before, line in pairwise(lines):
            if declaration.match(line):
                assert before.strip().startswith("//"), f"{path.name}: {line.strip()}"


def tracked() -> list[Path]:
    """Every file git knows; where this is no checkout, every file of the rooms."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in done.stdout.split("\0") if name]
    return [ROOT / name for name in names] or [path for path in ROOT.glob("[!.b]*/**/*") if path.is_file()]


def test_no_path_of_a_machine_is_written_down() -> None:
    """No file holds an absolute path of anybody's machine or one above the checkout."""
    machine = re.compile(r"(?<![\w.])/(root|home|work)/\w|\.\./shared")
    for path in tracked():
        try:
            text = path.read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        if path != Path(__file__).resolve():
            assert not machine.search(text), path


def test_links_between_documents_lead_somewhere() -> None:
    """Every relative link in a document names a file that exists."""
    for path in tracked():
        if path.suffix == ".md":
            for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text()):
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_reason_is_explained() -> None:
    """docs/errors.md explains every reason, and no reason that does not exist."""
    from fairlead.errors import Reason

    rows = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(reason.value for reason in Reason)
