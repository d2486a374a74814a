"""docs/quota.md: its commands parse, and its file is read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from fairlead.cli.commands import root
from fairlead.cli.policy_files import read_policies

PAGE = (Path(__file__).resolve().parents[3] / "docs/quota.md").read_text()
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("fairlead ")
]


def test_the_page_has_commands() -> None:
    """Proves that there is something to check."""
    assert len(LINES) > 15


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_page_parses(line: str) -> None:
    """Proves that command, arguments and options exist as they are written."""
    arguments = shlex.split(line, comments=True)[1:]
    command: click.Command = root
    context = click.Context(root, info_name="fairlead")
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None, line
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(command.name, arguments, parent=context.parent)


def test_the_file_of_the_page_is_good() -> None:
    """Proves that the example is read without a problem."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    found = read_policies(text, "toml")
    assert found.problems == []
    assert [reservation.tier for reservation in found.reservations] == [2, 5]
