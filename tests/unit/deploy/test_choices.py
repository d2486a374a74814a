"""What the launcher chooses: options, engine, etcd."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local import engine_choice, etcd
from deploy.local.console import StartError
from deploy.local.options import parse
from engines.triton import environment as triton


def test_empty_values_mean_defaults() -> None:
    """make passes every variable, set or not."""
    names = ("engine", "replicas", "http-port", "grpc-port", "admin-port", "standbys", "replay", "run-dir")
    assert parse([word for name in names for word in (f"--{name}", "")]) == parse([])
    assert (parse([]).http_port, parse([]).grpc_port, parse([]).admin_port) == (8080, 8081, 8082)


@pytest.mark.parametrize(
    "argv", [["--replicas", "-1"], ["--http-port", "65536"], ["--engine", "gpu"], ["--replay", "x"]]
)
def test_nonsense_is_refused_by_name(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A bad value names its option."""
    with pytest.raises(SystemExit):
        parse(argv)
    assert argv[0] in capsys.readouterr().err


def test_simulated_replicas_where_triton_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wheel for this machine: simulated replicas, said aloud with the reason; asked for by name, it is an error."""
    monkeypatch.setattr(triton, "unsupported_reason", lambda: "this is a toaster")
    choice = engine_choice.choose_engine(parse([]))
    assert (choice.engine, choice.replicas) == ("sim", 8)
    assert "this is a toaster" in choice.announcement
    with pytest.raises(StartError, match="toaster"):
        engine_choice.choose_engine(parse(["--engine", "triton"]))


def test_triton_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its environment there, Triton is the default, with two replicas."""
    monkeypatch.setattr(triton, "unsupported_reason", lambda: "")
    monkeypatch.setattr(triton, "is_current", lambda _root: True)
    choice = engine_choice.choose_engine(parse([]))
    assert (choice.engine, choice.replicas) == ("triton", 2)


def _etcd(folder: Path, version: str) -> Path:
    folder.mkdir()
    binary = folder / "etcd"
    binary.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
    binary.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("on_path", "embedded", "chosen"),
    [("3.5.16", "3.5.1", "3.5.16"), ("3.4.23", "3.5.1", "3.5.1"), ("3.5.2", None, "3.5.2"), (None, "3.5.1", "3.5.1")],
)
def test_a_newer_etcd_on_the_path_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: str | None, embedded: str | None, chosen: str
) -> None:
    """From 3.5.3 on the one on the PATH is taken; an older one only where nothing newer is embedded."""
    monkeypatch.setenv("PATH", str(_etcd(tmp_path / "path", on_path)) if on_path else str(tmp_path))
    inside = _etcd(tmp_path / "venv", embedded) if embedded else tmp_path / "venv"
    monkeypatch.setattr(etcd.sys, "executable", str(inside / "python"))
    assert ".".join(map(str, etcd.find_etcd().version)) == chosen


def test_no_etcd_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is embedded and none installed, the message names the commands."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(etcd.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StartError, match="brew install etcd"):
        etcd.find_etcd()
