"""fairlead generate, fairlead chat: try a model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import click

from fairlead.cli.app import Invocation, pass_invocation, root, stdin_text
from fairlead.cli.output import Output
from fairlead.errors import FairleadError
from fairlead.sdk.client import Client, Stream
from fairlead.sdk.model_choice import choose_model
from fairlead.sdk.requests import Message, RequestOptions
from fairlead.sdk.results import Generation

Function = TypeVar("Function", bound=Callable[..., Any])


def request_options(function: Function) -> Function:
    """Adds the options of a request."""
    options = [
        click.option("--model", default="", help="Model; may be left out where the tenant may use only one."),
        click.option("--tenant", help="Use this tenant's key of the local platform."),
        click.option("--max-tokens", type=int, help="Most output tokens."),
        click.option("--temperature", type=float, help="Randomness, 0 to 2."),
        click.option("--seed", type=int, help="Makes drawing repeatable."),
        click.option("--stop", multiple=True, help="End before this text; may be repeated."),
        click.option("--session", help="Prefer the replica that served this session."),
        click.option("--priority", type=click.Choice(["interactive", "batch"]), help="Scheduling class."),
        click.option("--deadline", "deadline_s", type=float, help="Seconds the request may take."),
        click.option("--request-id", help="Executed and billed once under this name."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@root.command("generate")
@click.argument("prompt", required=False)
@request_options
@pass_invocation
def generate(invocation: Invocation, /, prompt: str | None, model: str, tenant: str | None, **given: Any) -> None:
    """Continue a text; without PROMPT, or with -, it is read from standard input."""
    if prompt is None or prompt == "-":
        prompt = _stdin("PROMPT")
    with invocation.client(tenant) as client:
        name = _model(client, model)
        _show(invocation.output, client.stream_generate(prompt, model=name, **_options(given)))


@root.command("chat")
@click.argument("message", required=False)
@click.option("--system", help="Instructions for the model, in front of the conversation.")
@request_options
@pass_invocation
def chat(
    invocation: Invocation, /, message: str | None, system: str | None, model: str, tenant: str | None, **given: Any
) -> None:
    """Talk to a model; without MESSAGE, turn by turn until Ctrl-D."""
    turns = [Message("system", system)] if system else []
    with invocation.client(tenant) as client:
        name, options, output = _model(client, model), _options(given), invocation.output
        if message is not None or not sys.stdin.isatty():
            text = _stdin("MESSAGE") if message is None or message == "-" else message
            _show(output, client.stream_chat([*turns, Message("user", text)], model=name, **options))
            return
        options.setdefault("session", f"chat-{time.time_ns():x}")
        options.pop("request_id", None)  # one id names one request, and this is a conversation of several
        output.note(f"{name}; end with Ctrl-D")
        while (said := _ask(output)) is not None:
            if not said.strip():
                continue
            turns.append(Message("user", said))
            try:
                answer = _show(output, client.stream_chat(turns, model=name, **options))
            except FairleadError:
                turns.pop()
                raise
            turns.append(Message("assistant", answer.text))


def _model(client: Client, name: str) -> str:
    return name or choose_model("", client.list_models(), "this key").id


def _options(given: dict[str, Any]) -> RequestOptions:
    options: RequestOptions = {}
    for key, value in given.items():
        if value is not None and value != ():
            options[key] = list(value) if isinstance(value, tuple) else value  # type: ignore[literal-required]
    return options


def _stdin(name: str) -> str:
    if sys.stdin.isatty():
        raise click.UsageError(f"{name} is missing: give it, or pipe a text in")
    return stdin_text()


def _ask(output: Output) -> str | None:
    try:
        return output.side.input("[bold]> [/]")
    except EOFError:
        return None


def _show(output: Output, stream: Stream) -> Generation:
    began_s = time.monotonic()
    first_s: float | None = None
    with stream:
        for piece in stream:
            first_s = first_s or time.monotonic() - began_s
            if output.for_people:
                click.echo(piece.text, nl=False)
    result, wall_s = stream.result, time.monotonic() - began_s
    if not output.for_people:
        times = {"ttft_s": round(first_s, 4) if first_s is not None else None, "wall_s": round(wall_s, 4)}
        output.data({**asdict(result), "finish_reason": result.finish_reason.value, **times})
        return result
    click.echo()
    usage, cost = result.usage, result.cost
    output.note(
        f"{usage.input_tokens} tokens in ({usage.cached_input_tokens} cached), {usage.output_tokens} out, "
        f"{result.finish_reason.value}; {cost.settled_mu:.3f} MU (estimated {cost.estimated_mu:.3f}), "
        f"{cost.quota_left_mu:,.3f} MU left; replica {result.replica_id}; first token after "
        f"{(first_s or wall_s) * 1000:.0f} ms, all after {wall_s:.2f} s; request {result.request_id}"
    )
    return result
