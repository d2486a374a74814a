"""fairlead simulate: a platform in virtual time, where the simulator is at hand."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import click

from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.errors import FailedPreconditionError, InvalidArgumentError

_PACKAGE = "simulation"


class _PassedOn(click.Command):
    """Takes its arguments as they are: every option, the shared ones and --help too, is the simulator's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes the arguments."""
        ctx.params["arguments"] = tuple(args)
        return []


@root.command("simulate", cls=_PassedOn)
@pass_invocation
def simulate(invocation: Invocation, arguments: tuple[str, ...]) -> None:
    """Run a scenario in virtual time: the fleet, its tenants and its policies, without engines.

    The simulator is part of a checkout and of the platform's image; its own --help says more.
    """
    arguments = (*_form(invocation.form, arguments), *arguments)
    if not _installed():
        checkout = _checkout(Path.cwd())
        if checkout is None:
            raise FailedPreconditionError(
                "the simulator is not part of the installed command: repeat this in a checkout of Fairlead, or run "
                '`python -m simulation` in the platform\'s image (docker run --rm -v "$PWD:/scenarios" '
                "fairlead/platform:dev python -m simulation /scenarios/SCENARIO.toml)"
            )
        sys.path.insert(0, str(checkout))
        sys.modules.pop(_PACKAGE, None)  # looking for it may have imported something else of that name
    before = sys.argv
    sys.argv = ["fairlead simulate", *arguments]
    try:
        runpy.run_module(_PACKAGE, run_name="__main__")  # leaves sys.argv[0], by which it calls itself
    finally:
        sys.argv = before


def _form(wanted: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The output option that the simulator is given before its own arguments, which may say otherwise."""
    own = any(argument.startswith(("-o", "--out", "-h", "--help")) for argument in arguments)
    if own or wanted == "table":
        return ()
    if wanted != "json":
        raise InvalidArgumentError(
            f"the simulator prints table or json, not {wanted}: fairlead -o json simulate SCENARIO", field="output"
        )
    return ("-o", wanted)


def _installed() -> bool:
    """Whether Python finds a simulator that can be run, not something else of that name."""
    try:
        return importlib.util.find_spec(f"{_PACKAGE}.__main__") is not None
    except ModuleNotFoundError:
        return False


def _checkout(start: Path) -> Path | None:
    """The folder of a checkout: `start` or one above it."""
    return next(
        (
            folder
            for folder in (start, *start.parents)
            if (folder / _PACKAGE / "__main__.py").is_file() and (folder / "model_units").is_dir()
        ),
        None,
    )
