"""fairlead completion, fairlead version."""

from __future__ import annotations

import platform

import click
import grpc
from click.shell_completion import get_completion_class

from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.cli.output import Column
from fairlead.version import __version__

_HOW = {
    "bash": 'eval "$(fairlead completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(fairlead completion zsh)"   in ~/.zshrc',
    "fish": "fairlead completion fish | source   in ~/.config/fish/config.fish",
}


@root.command("completion", epilog="To install: " + "; ".join(_HOW.values()))
@click.argument("shell", type=click.Choice(sorted(_HOW)))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three shells"
    click.echo(kind(root, {}, "fairlead", "_FAIRLEAD_COMPLETE").source())


@root.command("version")
@pass_invocation
def version(invocation: Invocation) -> None:
    """Print the versions of Fairlead and what it stands on."""
    row = {"fairlead": __version__, "python": platform.python_version(), "grpcio": grpc.__version__}
    invocation.output.row(row, [Column(name, name) for name in row])
