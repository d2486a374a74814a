"""docs/relay-limits.md names settings that exist, with their defaults, and tests that exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from data_plane.router.config import RouterConfig
from data_plane.router.door_config import DoorConfig

ROOT = Path(__file__).resolve().parents[3]
NOT_LIMITS = {"grpc_transport", "tls_certificate_file", "tls_key_file", "tls_client_ca_file"}


def rows() -> list[list[str]]:
    """Threat, limit, default, setting, beyond and test of every row."""
    lines = (ROOT / "docs" / "relay-limits.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in cells if row[0] not in ("threat", "---")]


def test_every_row_names_a_test_that_exists() -> None:
    for row in rows():
        assert len(row) == 6, row
        file, _, name = row[5].strip("`").partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), row[5]


def test_settings_and_defaults_are_those_of_the_router() -> None:
    defaults = {each.name: each.default for each in dataclasses.fields(RouterConfig)}
    for _, _, default, setting, _, _ in rows():
        if setting:
            assert float(default.replace(",", "")) == defaults[setting.strip("`")], setting


def test_every_limit_that_can_be_set_is_there() -> None:
    limits = {each.name for each in dataclasses.fields(DoorConfig) if each.name in DoorConfig.__annotations__}
    assert limits - NOT_LIMITS == {row[3].strip("`") for row in rows() if row[3]} - {"body_bytes_max"}
