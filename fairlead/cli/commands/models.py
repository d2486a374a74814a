"""fairlead models: what the platform serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml
from google.protobuf import json_format

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.app import Invocation, confirm, dry_run_option, pass_invocation, root, stdin_text, yes_option
from fairlead.cli.candidates import model_ids
from fairlead.cli.connection import AdminConnection, new_request_id
from fairlead.cli.output import Column, Row, message_row, plain
from fairlead.errors import InvalidArgumentError

Function = TypeVar("Function", bound=Callable[..., Any])

HEADROOMS = ("none", "replica", "host", "rack")
"""What may be lost without cutting a reservation."""


ROUTING_POLICIES = tuple(
    name.removeprefix("ROUTING_POLICY_").lower().replace("_", "-") for name in admin_pb2.RoutingPolicy.keys()[1:]
)
"""How routers may pick a replica."""

DEFAULT_ROUTING = "default"
"""The platform's choice of a routing policy, as a word."""


def headroom_of(word: str) -> admin_pb2.Headroom.ValueType:
    """The headroom policy that one of HEADROOMS names."""
    return admin_pb2.Headroom.Value(f"HEADROOM_{word.upper()}")


def headroom_word(value: Any) -> str:
    """Shows a headroom policy; none was set where it is unspecified."""
    return "none" if value == "unspecified" else plain(value)


def routing_policy_of(word: str) -> admin_pb2.RoutingPolicy.ValueType:
    """The policy that one of ROUTING_POLICIES, or DEFAULT_ROUTING, names."""
    name = "UNSPECIFIED" if word == DEFAULT_ROUTING else word.upper().replace("-", "_")
    return admin_pb2.RoutingPolicy.Value(f"ROUTING_POLICY_{name}")


def routing_word(value: Any) -> str:
    """Shows a routing policy as it is given; the platform's choice where none was set."""
    return DEFAULT_ROUTING if value == "unspecified" else plain(value).replace("_", "-")


def _engine(value: Any) -> str:
    return f"{value['engine']} on {value['hardware']}" if value else plain(value)


COLUMNS = (
    Column("model_id", "model"),
    Column("display_name", "name"),
    Column("engine", "engine", _engine),
    Column("profile_id", "cost profile"),
    Column("context_tokens", "context"),
    Column("output_tokens_max", "most output"),
    Column("target_utilization", "target use"),
    Column("replicas_min", "replicas min"),
    Column("replicas_max", "max"),
    Column("headroom", "headroom", headroom_word),
    Column("routing_policy", "routing", routing_word),
)
_ENGINE_FIELDS = ("engine", "hardware", "sequences_max", "dialect", "endpoint")


@root.group()
def models() -> None:
    """Create, read, change and delete models."""


def model_options(function: Function) -> Function:
    """Adds an option for every field of a model."""
    options = [
        click.option(
            "-f", "--file", type=click.Path(path_type=Path), help="YAML or JSON with the fields; - for stdin."
        ),
        click.option("--display-name", help="For people; at most 200 characters."),
        click.option("--engine", type=click.Choice(["triton", "simulated"]), help="What its replicas run."),
        click.option("--hardware", help="Hardware label of the cost profile, such as cpu-2core or h100-tp4."),
        click.option("--sequences-max", type=int, help="Most sequences at once; 0 for the engine's default."),
        click.option("--dialect", help="Triton's tensors: ensemble, llmapi, or empty to ask the server."),
        click.option("--endpoint", metavar="HOST:PORT", help="A running Triton the platform does not start."),
        click.option("--profile-id", help="Cost profile, such as llama-3.1-8b/h100/1."),
        click.option("--context-tokens", type=int, help="Longest prompt plus output."),
        click.option("--output-tokens-max", type=int, help="Most output tokens of one request."),
        click.option("--output-tokens-default", type=int, help="Output tokens where a request sets no limit."),
        click.option("--bytes-per-token", type=float, help="Bytes of text per token, a start value."),
        click.option("--target-utilization", type=float, help="Share of live capacity that may be promised, up to 1."),
        click.option("--replicas-min", type=int, help="Fewest replicas."),
        click.option("--replicas-max", type=int, help="Most replicas."),
        click.option(
            "--headroom",
            type=click.Choice(HEADROOMS),
            callback=lambda context, parameter, value: None if value is None else headroom_of(value),
            help="What may be lost without cutting a reservation: that much is lent, not sold.",
        ),
        click.option(
            "--routing-policy",
            type=click.Choice([DEFAULT_ROUTING, *ROUTING_POLICIES]),
            callback=lambda context, parameter, value: None if value is None else routing_policy_of(value),
            help="How routers pick one of a tenant's replicas.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@models.command("create")
@click.argument("model_id", required=False)
@model_options
@dry_run_option
@pass_invocation
def create(invocation: Invocation, /, model_id: str | None, file: Path | None, dry_run: bool, **fields: Any) -> None:
    """Create a model from options, from a file, or from both (options win)."""
    model = admin_pb2.Model()
    _fill(model, file, fields)
    if model_id:
        model.model_id = model_id
    if not model.model_id:
        raise click.UsageError("name the model: fairlead models create MODEL_ID ..., or model_id in the file")
    request = admin_pb2.CreateModelRequest(model=model, validate_only=dry_run, request_id=new_request_id())
    with invocation.admin() as connection:
        created = connection.call(connection.admin.CreateModel, request)
    invocation.output.row(message_row(created), COLUMNS)
    invocation.output.done(
        f"model {model.model_id} created; next: fairlead quota set TENANT {model.model_id} --reserved MU",
        dry_run=dry_run,
    )


@models.command("get")
@click.argument("model_id", shell_complete=model_ids)
@pass_invocation
def get(invocation: Invocation, model_id: str) -> None:
    """Show one model. With -o yaml, the output is a file for create and update."""
    with invocation.admin() as connection:
        row = message_row(_read(connection, model_id))
    invocation.output.row(row, [*COLUMNS, *_rest(row)])


@models.command("list")
@pass_invocation
def list_(invocation: Invocation) -> None:
    """List all models."""
    with invocation.admin() as connection:
        rows = [message_row(model) for model in connection.models()]
    invocation.output.rows(rows, COLUMNS, empty="no models yet: fairlead models create --help")


@models.command("update")
@click.argument("model_id", shell_complete=model_ids)
@model_options
@dry_run_option
@pass_invocation
def update(invocation: Invocation, /, model_id: str, file: Path | None, dry_run: bool, **fields: Any) -> None:
    """Change a model; what is not given stays."""
    if file is None and all(value is None for value in fields.values()):
        raise click.UsageError("nothing to change: give at least one option, or -f FILE")
    with invocation.admin() as connection:
        model = _read(connection, model_id)
        etag = model.etag
        _fill(model, file, fields)
        model.model_id, model.etag = model_id, etag
        request = admin_pb2.UpdateModelRequest(model=model, validate_only=dry_run, request_id=new_request_id())
        changed = connection.call(connection.admin.UpdateModel, request)
    invocation.output.row(message_row(changed), COLUMNS)
    invocation.output.done(f"model {model_id} changed", dry_run=dry_run)


@models.command("delete")
@click.argument("model_id", shell_complete=model_ids)
@yes_option
@dry_run_option
@pass_invocation
def delete(invocation: Invocation, model_id: str, yes: bool, dry_run: bool) -> None:
    """Delete a model that no reservation names. Its replicas are stopped."""
    confirm(f"Delete model {model_id} and stop its replicas?", yes=yes, dry_run=dry_run)
    request = admin_pb2.DeleteModelRequest(model_id=model_id, validate_only=dry_run, request_id=new_request_id())
    with invocation.admin() as connection:
        connection.call(connection.admin.DeleteModel, request)
    invocation.output.row({"model_id": model_id, "dry_run": dry_run}, COLUMNS[:1])
    invocation.output.done(f"model {model_id} deleted", dry_run=dry_run)


def _read(connection: AdminConnection, model_id: str) -> admin_pb2.Model:
    return connection.call(connection.admin.GetModel, admin_pb2.GetModelRequest(model_id=model_id))


def _rest(row: Row) -> list[Column]:
    shown = {column.field for column in COLUMNS}
    return [Column(field, field.replace("_", " ")) for field in row if field not in shown]


def _fill(model: admin_pb2.Model, file: Path | None, fields: dict[str, Any]) -> None:
    if file is not None:
        _merge_file(model, file)
    for name, value in fields.items():
        if value is not None:
            setattr(model.engine if name in _ENGINE_FIELDS else model, name, value)


def _merge_file(model: admin_pb2.Model, file: Path) -> None:
    try:
        text = stdin_text() if str(file) == "-" else file.read_text()
        data = yaml.safe_load(text)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{file} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise InvalidArgumentError(f"{file} must hold the fields of one model, such as model_id: my-model")
    # What `get` prints and the server sets is taken for what it is.
    data = {key: value for key, value in data.items() if key not in ("create_time", "etag")}
    if data.get("headroom") in (*HEADROOMS, "unspecified"):
        data["headroom"] = f"HEADROOM_{data['headroom'].upper()}"
    routing = str(data.get("routing_policy")).replace("_", "-")
    if routing in (DEFAULT_ROUTING, *ROUTING_POLICIES, "unspecified"):
        data["routing_policy"] = routing_policy_of(routing)
    try:
        json_format.ParseDict(data, model)
    except (json_format.ParseError, TypeError) as error:
        known = ", ".join(field.name for field in model.DESCRIPTOR.fields)
        raise InvalidArgumentError(f"{file}: {error}; fields of a model: {known}") from None
