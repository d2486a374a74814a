"""Configuration: one order of precedence, every refusal names its setting."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from common.config import CommonConfig, describe, load_config, setting
from fairlead.errors import InvalidArgumentError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(CommonConfig):
    refresh_s: float = setting(1.0, "pause, seconds", minimum=0.1, maximum=10)
    eager: bool = setting(False, "whether to hurry")
    token: str = setting("", "a secret", secret=True)


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """Each source overrides the one before it."""
    file = tmp_path / "demo.toml"
    file.write_text("refresh_s = 2\neager = true\ngrpc_port = 1\n")
    environ = {"FAIRLEAD_REFRESH_S": "3", "FAIRLEAD_DEMO_REFRESH_S": "4", "FAIRLEAD_GRPC_PORT": "2"}
    config = load_config(DemoConfig, "demo", ["--config", str(file), "--grpc-port", "3"], environ)
    assert (config.refresh_s, config.eager, config.grpc_port, config.ops_port) == (4.0, True, 3, 0)


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("refresh = 1", "refresh"),
        ("refresh_s = 0.01", "refresh_s"),
        ("refresh_s = nan", "refresh_s"),
        ("refresh_s = 'soon'", "refresh_s"),
        ("eager = 1", "eager"),
        ("log_level = 'loud'", "log_level"),
        ("refresh_s = ", "demo.toml"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path: Path, toml: str, named: str) -> None:
    """Unknown names, wrong types and values out of range are refused, and the message names the setting."""
    file = tmp_path / "demo.toml"
    file.write_text(toml)
    with pytest.raises(InvalidArgumentError, match=named):
        load_config(DemoConfig, "demo", ["--config", str(file)], {})


def test_secrets_are_not_described() -> None:
    """What is logged at start hides secrets."""
    assert describe(DemoConfig(token="hush"))["token"] == "***"
