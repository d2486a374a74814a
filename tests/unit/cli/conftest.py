"""The command, run in this process against a fake platform over real gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fairlead.cli.commands import root
from tests.support.fake_platform import FakePlatform


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine the tests run on gets in."""
    for name in ("ADDRESS", "ADMIN_ADDRESS", "ADMIN_TOKEN_FILE", "API_KEY", "OUTPUT", "PROFILE", "CONFIG", "PLATFORM"):
        monkeypatch.delenv(f"FAIRLEAD_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    """A fake platform with one tenant, one model, one replica and one reservation."""
    with FakePlatform() as running:
        running.control.seed()
        yield running


class Command:
    """Runs `fairlead` with the addresses of a platform."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def run(self, *args: str, exit_code: int = 0, stdin: str | bytes | None = None) -> Result:
        """Runs the command and checks its exit code."""
        result = CliRunner().invoke(root, args, env=self._environment, input=stdin)
        assert result.exit_code == exit_code, f"{result.exit_code}: {result.output} {result.exception!r}"
        return result

    def json(self, *args: str, exit_code: int = 0, stdin: str | None = None) -> Any:
        """Runs the command with -o json and parses what it printed."""
        return json.loads(self.run("-o", "json", *args, exit_code=exit_code, stdin=stdin).stdout)

    def error(self, *args: str, exit_code: int) -> str:
        """Runs a command that must fail with one line."""
        result = self.run(*args, exit_code=exit_code)
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("error: ")
        return result.stderr


@pytest.fixture
def command(platform: FakePlatform, tmp_path: Path) -> Command:
    """The command, pointed at the platform by its environment."""
    token_file = tmp_path / "admin.token"
    token_file.write_text(platform.control.token + "\n")
    return Command(
        {
            "FAIRLEAD_ADDRESS": platform.address,
            "FAIRLEAD_ADMIN_ADDRESS": platform.admin_address,
            "FAIRLEAD_ADMIN_TOKEN_FILE": str(token_file),
            "FAIRLEAD_API_KEY": "fl-key-alpha",
        }
    )
