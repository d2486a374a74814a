"""The house's rules that a machine can check: who imports whom, pure cores, module sizes, commented protos."""

from __future__ import annotations

import ast
import re
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


def imported(path: Path) -> set[str]:
    """Top-level packages a module imports, lazily or not."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


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
    for room in (*SERVICES, *SHARED, "deploy", "tools", "benchmarks"):
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


def test_no_path_of_a_machine_is_written_down() -> None:
    """Code and documents hold no absolute path of anybody's machine."""
    for room in (*SERVICES, *SHARED, "deploy", "tools", "benchmarks", "docs", "tests"):
        for path in (ROOT / room).rglob("*"):
            if path.suffix in {".py", ".md", ".toml", ".yaml", ".sh", ".proto"}:
                assert not re.search(r"/(root|home)/\w", path.read_text().replace("/root/\\", "")), path


def test_every_reason_is_explained() -> None:
    """docs/errors.md explains every reason, and no reason that does not exist."""
    from fairlead.errors import Reason

    rows = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(reason.value for reason in Reason)
