"""fairlead keys: API keys; a secret is shown once."""

from __future__ import annotations

import click

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.app import Invocation, confirm, dry_run_option, pass_invocation, root, yes_option
from fairlead.cli.connection import new_request_id
from fairlead.cli.output import Column, message_row

COLUMNS = (
    Column("key_id", "key"),
    Column("tenant_id", "tenant"),
    Column("display_name", "name"),
    Column("create_time", "created"),
)


@root.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command("create")
@click.argument("tenant_id")
@click.option("--display-name", default="", help="For people; at most 200 characters.")
@dry_run_option
@pass_invocation
def create(invocation: Invocation, tenant_id: str, display_name: str, dry_run: bool) -> None:
    """Create an API key. The secret is printed once and stored nowhere."""
    request = admin_pb2.CreateApiKeyRequest(
        tenant_id=tenant_id, display_name=display_name, validate_only=dry_run, request_id=new_request_id()
    )
    with invocation.admin() as connection:
        answer = connection.call(connection.admin.CreateApiKey, request)
    row = {**message_row(answer.api_key), "secret_key": answer.secret_key or None}
    invocation.output.row(row, (*COLUMNS[:3], Column("secret_key", "secret")))
    invocation.output.done("key created: keep the secret now, it is never shown again", dry_run=dry_run)


@keys.command("list")
@click.argument("tenant_id", required=False, default="")
@pass_invocation
def list_(invocation: Invocation, tenant_id: str) -> None:
    """List the keys of all tenants, or of one. Secrets are not kept."""
    with invocation.admin() as connection:
        answer = connection.call(connection.admin.ListApiKeys, admin_pb2.ListApiKeysRequest(tenant_id=tenant_id))
    rows = [message_row(key) for key in answer.api_keys]
    invocation.output.rows(rows, COLUMNS, empty="no keys: fairlead keys create TENANT")


@keys.command("revoke")
@click.argument("key_id")
@yes_option
@dry_run_option
@pass_invocation
def revoke(invocation: Invocation, key_id: str, yes: bool, dry_run: bool) -> None:
    """Revoke a key. Routers refuse it within about 100 ms."""
    confirm(f"Revoke key {key_id}? Whoever uses it is refused at once.", yes=yes, dry_run=dry_run)
    request = admin_pb2.RevokeApiKeyRequest(key_id=key_id, validate_only=dry_run, request_id=new_request_id())
    with invocation.admin() as connection:
        connection.call(connection.admin.RevokeApiKey, request)
    invocation.output.row({"key_id": key_id, "dry_run": dry_run}, COLUMNS[:1])
    invocation.output.done(f"key {key_id} revoked", dry_run=dry_run)
