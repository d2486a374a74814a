"""The command tree and what all commands have in common."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import click

from fairlead.cli.connection import AdminConnection
from fairlead.cli.failures import (
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    EXIT_WRONG,
    exit_code_of,
    show_error,
    show_usage_error,
)
from fairlead.cli.output import Output
from fairlead.cli.settings import OUTPUTS, Settings, resolve
from fairlead.errors import FairleadError, InvalidArgumentError
from fairlead.sdk.client import Client

Function = TypeVar("Function", bound=Callable[..., Any])


class Invocation:
    """One run of the command: its options, and the connections they lead to."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}
        """Options of the command line that every command has."""

    @cached_property
    def settings(self) -> Settings:
        """The settings, put together when first needed."""
        return resolve(self.given)

    @property
    def form(self) -> str:
        """The output form as far as it is known, even while the settings are broken."""
        return self.given.get("output") or os.environ.get("FAIRLEAD_OUTPUT", "") or "table"

    @cached_property
    def output(self) -> Output:
        """Where results go."""
        return Output(self.settings.output)

    def admin(self) -> AdminConnection:
        """Opens a connection to the control plane; to be used in a with block."""
        settings = self.settings
        return AdminConnection(settings.admin_address, settings.admin_token(), settings.tls)

    def client(self, tenant: str | None = None, deadline_s: float | None = None) -> Client:
        """Opens a connection to the routers; to be used in a with block.

        Args:
            tenant: Use this tenant's key of the local platform.
            deadline_s: Deadline of each request, seconds; None for the SDK's.
        """
        settings = self.settings
        options: dict[str, Any] = {} if deadline_s is None else {"deadline_s": deadline_s}
        return Client(settings.addresses, api_key=settings.api_key(tenant), tls=settings.tls or False, **options)


pass_invocation = click.make_pass_decorator(Invocation)


def _take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and parameter.name is not None:
        context.ensure_object(Invocation).given[parameter.name] = value


def _shared_options(*, hidden: bool) -> list[click.Option]:
    def option(*names: str, **more: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_take, **more)

    return [
        option("-o", "--output", type=click.Choice(OUTPUTS), help="Form of the output.  [default: table]"),
        option("--profile", metavar="NAME", hidden=hidden, help="Profile of the configuration file, no cost profile."),
        option("--address", metavar="HOST:PORT", hidden=hidden, help="Router, or several with commas."),
        option("--admin-address", metavar="HOST:PORT", hidden=hidden, help="Control plane."),
        option("--admin-token-file", metavar="FILE", hidden=hidden, help="File with the admin token."),
        option("--api-key", metavar="KEY", hidden=hidden, help="Tenant's key; better set FAIRLEAD_API_KEY."),
        option("--tls", flag_value="1", hidden=hidden, help="Encrypt the connections."),
        option("--tls-ca-file", metavar="FILE", hidden=hidden, help="Authorities to trust, PEM; implies --tls."),
    ]


class FairleadCommand(click.Command):
    """A command that takes the shared options too, so that they may stand at the end of a line."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params.extend(_shared_options(hidden=True))


class FairleadGroup(click.Group):
    """A group that knows what was meant. One that does something alone takes the shared options, as a command does."""

    command_class = FairleadCommand

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        if self.invoke_without_command:
            self.params.extend(_shared_options(hidden=True))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command; an unknown one is answered with the names that come close."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=3, cutoff=0.5)
            meant = (
                f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(self.list_commands(ctx))}"
            )
            raise click.UsageError(f"there is no command {args[0]!r}; {meant}", ctx)
        return super().resolve_command(ctx, args)


class RootGroup(FairleadGroup):
    """The root: every way to fail ends here as one line and an exit code."""

    group_class = FairleadGroup

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Runs the command and leaves the process with its exit code."""
        invocation = Invocation()
        sys.exit(self._run(args, prog_name or "fairlead", complete_var, invocation, extra))

    def _run(
        self,
        args: Sequence[str] | None,
        prog_name: str,
        complete_var: str | None,
        invocation: Invocation,
        extra: dict[str, Any],
    ) -> int:
        try:
            result = super().main(args, prog_name, complete_var, standalone_mode=False, obj=invocation, **extra)
            return result if isinstance(result, int) else 0
        except click.UsageError as error:
            show_usage_error(error, invocation.form)
            return EXIT_USAGE
        except click.ClickException as error:
            show_usage_error(error, invocation.form)
            return EXIT_WRONG
        except FairleadError as error:
            show_error(error, invocation.form)
            return exit_code_of(error)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            # Whoever read the output has enough. Nothing may be flushed into the closed pipe at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


@click.group(
    cls=RootGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=_shared_options(hidden=False),
    epilog="Settings come from options, then FAIRLEAD_* (FAIRLEAD_ADDRESS, FAIRLEAD_ADMIN_ADDRESS, "
    "FAIRLEAD_ADMIN_TOKEN_FILE, FAIRLEAD_API_KEY, FAIRLEAD_OUTPUT, FAIRLEAD_PROFILE, ...), then a profile of "
    "~/.config/fairlead/config.toml, then a local platform (build/run/platform.json). Exit codes: 0 fine, 1 something "
    "is wrong, 2 wrong usage, 3 not reachable or too late, 4 key or token refused, 5 not found, 6 exists already or "
    "changed meanwhile, 7 quota refused, 130 interrupted.",
)
def root() -> None:
    """Fairlead: multi-tenant LLM inference with quotas in model units."""


def dry_run_option(function: Function) -> Function:
    """Adds --dry-run: everything is checked, nothing is changed."""
    return click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")(function)


def yes_option(function: Function) -> Function:
    """Adds --yes: no question before something is deleted."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(function)


def confirm(question: str, *, yes: bool, dry_run: bool) -> None:
    """Asks before something is lost.

    Args:
        question: What is about to happen.
        yes: The user has agreed beforehand.
        dry_run: Nothing will happen.

    Raises:
        click.Abort: The user said no.
        InvalidArgumentError: Nobody is there to ask.
    """
    if yes or dry_run:
        return
    if not sys.stdin.isatty():
        raise InvalidArgumentError(f"{question} Nobody is at the terminal to ask: repeat with --yes")
    click.confirm(question, abort=True, err=True)


def stdin_text() -> str:
    """Reads standard input to its end.

    Raises:
        InvalidArgumentError: It is not UTF-8.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidArgumentError("standard input is not UTF-8 text") from None


def main() -> NoReturn:
    """Entry point of the `fairlead` command."""
    # The commands register themselves with `root` when they are imported.
    from fairlead.cli import commands  # noqa: F401

    try:
        root.main()
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:
            # At once: a connection whose call was interrupted may wait for its server before it closes.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
        raise
