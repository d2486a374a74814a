"""Where settings come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead import InvalidArgumentError, UnauthenticatedError
from fairlead.cli.local_platform import find_platform, host_port, read_platform
from fairlead.cli.settings import config_path, read_profile, resolve
from fairlead.errors import FailedPreconditionError
from fairlead.version import __version__

PROFILES = """
[profiles.default]
address = "default:1"
[profiles.prod]
address = "prod:1"
admin_address = "prod:2"
tls = true
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    (folder / "config.toml").write_text(PROFILES)
    return {"FAIRLEAD_CONFIG": str(folder / "config.toml"), **more}


def test_command_line_then_environment_then_profile(tmp_path: Path) -> None:
    """The nearest wins, field by field, and where each came from is known."""
    found = resolve(
        {"profile": "prod", "address": "line:1"}, environment(tmp_path, FAIRLEAD_ADDRESS="env:1", FAIRLEAD_API_KEY="k")
    )
    assert found.addresses == ["line:1"]
    assert found.admin_address == "prod:2"
    assert found.api_key() == "k"
    assert found.tls is not None
    assert found.sources["address"] == "command line"
    assert found.sources["api_key"] == "environment"
    assert found.sources["admin_address"].startswith("profile prod in ")
    assert resolve({}, environment(tmp_path)).addresses == ["default:1"]
    assert resolve({"tls": "0", "profile": "prod"}, environment(tmp_path)).tls is None


def test_defaults_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local platform's usual ports, plain text, no key."""
    monkeypatch.chdir(tmp_path)
    found = resolve({}, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert (found.addresses, found.admin_address, found.tls) == (["127.0.0.1:8081"], "127.0.0.1:8082", None)
    with pytest.raises(UnauthenticatedError, match="--api-key"):
        found.api_key()
    with pytest.raises(UnauthenticatedError, match="--admin-token-file"):
        found.admin_token()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[profiles.default", "is not TOML"),
        ("colour = 1", "unknown key colour"),
        ("profiles = 1", r"write \[profiles.NAME\] tables"),
        ("[profiles.default]\ncolour = 'red'", "unknown key colour in profile"),
        ("[profiles.default]\naddress = 7", "address must be a text"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(tmp_path: Path, text: str, problem: str) -> None:
    """A typing error in the file is found, not ignored."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=problem):
        read_profile(path, None)


def test_a_missing_profile(tmp_path: Path) -> None:
    """A profile that was asked for must exist; the default one need not."""
    assert read_profile(tmp_path / "none.toml", None) == {}
    with pytest.raises(InvalidArgumentError, match="no profile prod"):
        read_profile(tmp_path / "none.toml", "prod")
    (tmp_path / "config.toml").write_text(PROFILES)
    with pytest.raises(InvalidArgumentError, match="it has: default, prod"):
        read_profile(tmp_path / "config.toml", "test")
    assert config_path({"XDG_CONFIG_HOME": "base"}) == Path("base/fairlead/config.toml")


def test_the_platform_file(tmp_path: Path) -> None:
    """Found above, named by FAIRLEAD_PLATFORM, or refused with what to do."""
    run = tmp_path / "build" / "run"
    run.mkdir(parents=True)
    path = run / "platform.json"
    path.write_text(json.dumps({"http": "http://h:1", "grpc": "h:2", "admin": "h:3", "tenants": {}}))
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_platform({}, below) == path.resolve()
    assert find_platform({"FAIRLEAD_PLATFORM": "else.json"}, below) == Path("else.json")
    found = read_platform(path)
    assert (found.http, found.grpc, found.admin, found.running()) == ("h:1", "h:2", "h:3", True)
    with pytest.raises(FailedPreconditionError, match="is the local platform up"):
        read_platform(tmp_path / "none.json")
    for bad in ("{", "[]", "{}", '{"http": 1, "grpc": "h:2", "tenants": []}'):
        path.write_text(bad)
        with pytest.raises(InvalidArgumentError, match="start"):
            read_platform(path)
    assert host_port("http://h:1/x") == "h:1"


def test_the_version_is_written_once_more_in_the_project_file() -> None:
    """pyproject.toml and the package agree."""
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
