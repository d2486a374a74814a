"""The Triton environment: found, missing, impossible."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from engines.triton import environment
from engines.triton.environment import TritonEnvironmentError, default_directory, install, main, open_environment


def test_a_missing_environment_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shows the message a person sees, from the library and from the command line."""
    with pytest.raises(TritonEnvironmentError, match="--install"):
        open_environment(tmp_path)
    assert main(["--directory", str(tmp_path)]) == 1
    assert "python -m engines.triton.environment --install" in capsys.readouterr().err


def test_a_platform_without_a_wheel_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that nothing is installed where nothing can run."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(TritonEnvironmentError, match="x86_64 only"):
        install(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def test_an_old_libc_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the wheel's platform tag is checked before the installer fails on it."""
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    assert "glibc 2.35" in environment.unsupported_reason()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """Shows that a mistyped --directory destroys nothing."""
    if environment.unsupported_reason():
        pytest.skip(environment.unsupported_reason())
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TritonEnvironmentError, match="not a virtual environment"):
        install(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_the_directory_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shows the one setting of the environment."""
    monkeypatch.setenv("FAIRLEAD_TRITON_ENVIRONMENT", str(tmp_path))
    assert default_directory() == tmp_path


@pytest.mark.parametrize("module", [environment.__file__, str(Path(environment.__file__).with_name("guard.py"))])
def test_only_the_standard_library_is_imported(module: str) -> None:
    """Proves that the launcher can run it before anything is installed, and the guard in isolated mode."""
    tree = ast.parse(Path(module).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
