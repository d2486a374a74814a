"""The environments: what makes one current, and how make hands over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy import bootstrap, environments, work

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Something that looks like an environment made with this interpreter."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "platform.lock"
    path.write_text("a==1 --hash=sha256:00\n")
    return path


def test_current_until_the_lock_changes(venv: Path, lock: Path) -> None:
    """A stamp holds for exactly the lock it was written for."""
    assert not environments.is_current(venv, lock)
    environments.write_stamp(venv, [lock])
    assert environments.is_current(venv, lock)
    lock.write_text("a==2 --hash=sha256:00\n")
    assert not environments.is_current(venv, lock)


def test_not_current_with_another_interpreter(venv: Path, lock: Path, tmp_path: Path) -> None:
    """An environment whose interpreter was replaced is made anew."""
    environments.write_stamp(venv, [lock])
    other = tmp_path / "python"
    other.touch()
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to(other)
    assert not environments.is_current(venv, lock)


def test_not_current_in_a_checkout_that_moved(venv: Path, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts of an environment hold absolute paths: a moved checkout makes a new one."""
    environments.write_stamp(venv, [lock])
    monkeypatch.setattr(environments, "CHECKOUT", Path("elsewhere"))
    assert not environments.is_current(venv, lock)


def test_damaged_stamp_is_no_stamp(venv: Path, lock: Path) -> None:
    """A file that was cut off means making the environment again."""
    (venv / environments.STAMP).write_text('{"platform": ')
    assert not environments.is_current(venv, lock)


def test_failed_command_shows_the_end_of_its_output() -> None:
    """The reason is in the message."""
    with pytest.raises(work.BuildError, match="no such thing"):
        work.Work().run([sys.executable, "-c", "import sys; sys.exit('no such thing')"])


def test_locks_agree() -> None:
    """What tests run with holds exactly what the platform runs with, and more."""

    def pins(name: str) -> set[str]:
        lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
        return {line.split(" ")[0] for line in lines if line and not line.startswith((" ", "#"))}

    assert pins("platform") < pins("dev")


def test_bootstrap_is_readable_by_old_pythons() -> None:
    """An interpreter that is too old says so: the first file uses nothing newer than Python 3.6."""
    import ast

    ast.parse((ROOT / "deploy" / "bootstrap.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("prefix", "options", "fits", "taken"),
    [
        ("/opt/python", "'--enable-shared'", True, True),
        ("/opt/python", "'--enable-shared'", False, False),
        ("/opt/python", "'--enable-optimizations' '--with-lto'", True, False),
        ("/usr", "'--enable-shared'", True, False),
        ("/opt/python", "", True, False),
    ],
)
def test_a_python_without_optimizations_is_replaced(
    prefix: str, options: str, fits: bool, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own is taken for one compiled by hand, if environments and extensions can be made for it."""
    system = tmp_path / "python3"
    system.write_text(f"#!/bin/sh\nexit {int(not fits)}\n")
    system.chmod(0o755)
    monkeypatch.setattr(bootstrap, "SYSTEM_PYTHON", str(system))
    assert bootstrap.faster_python(prefix, options) == (str(system) if taken else "")


def test_no_system_python_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is nothing else, this one it is."""
    monkeypatch.setattr(bootstrap, "SYSTEM_PYTHON", str(tmp_path / "none"))
    assert bootstrap.faster_python("/opt/python", "'--enable-shared'") == ""


def test_bootstrap_hands_over_with_nothing_to_do() -> None:
    """In a finished environment it becomes the command, whose exit code is its own."""
    if not environments.is_current(environments.VENV, environments.REQUIREMENTS / "dev.lock"):
        pytest.skip("these tests do not run in an environment that make built")
    command = [sys.executable, "deploy/bootstrap.py", "--tests", "--", "-c", "import fairlead, sys; sys.exit(7)"]
    assert subprocess.run(command, cwd=ROOT).returncode == 7
