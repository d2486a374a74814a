"""fairlead tenants: who pays."""

from __future__ import annotations

import click

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.app import Invocation, confirm, dry_run_option, pass_invocation, root, yes_option
from fairlead.cli.connection import AdminConnection, new_request_id
from fairlead.cli.output import Column, message_row

COLUMNS = (
    Column("tenant_id", "tenant"),
    Column("display_name", "name"),
    Column("suspended", "suspended"),
    Column("create_time", "created"),
)


@root.group()
def tenants() -> None:
    """Create, read, change and delete tenants."""


@tenants.command("create")
@click.argument("tenant_id")
@click.option("--display-name", default="", help="For people; at most 200 characters.")
@dry_run_option
@pass_invocation
def create(invocation: Invocation, tenant_id: str, display_name: str, dry_run: bool) -> None:
    """Create a tenant."""
    request = admin_pb2.CreateTenantRequest(
        tenant=admin_pb2.Tenant(tenant_id=tenant_id, display_name=display_name),
        validate_only=dry_run,
        request_id=new_request_id(),
    )
    with invocation.admin() as connection:
        tenant = connection.call(connection.admin.CreateTenant, request)
    invocation.output.row(message_row(tenant), COLUMNS)
    invocation.output.done(f"tenant {tenant_id} created; next: fairlead keys create {tenant_id}", dry_run=dry_run)


@tenants.command("get")
@click.argument("tenant_id")
@pass_invocation
def get(invocation: Invocation, tenant_id: str) -> None:
    """Show one tenant."""
    with invocation.admin() as connection:
        invocation.output.row(message_row(_read(connection, tenant_id)), COLUMNS)


@tenants.command("list")
@pass_invocation
def list_(invocation: Invocation) -> None:
    """List all tenants."""
    with invocation.admin() as connection:
        rows = [message_row(tenant) for tenant in connection.tenants()]
    invocation.output.rows(rows, COLUMNS, empty="no tenants yet: fairlead tenants create NAME")


@tenants.command("update")
@click.argument("tenant_id")
@click.option("--display-name", default=None, help="For people; at most 200 characters.")
@click.option("--suspended/--not-suspended", default=None, help="Whether its requests are refused.")
@dry_run_option
@pass_invocation
def update(
    invocation: Invocation, tenant_id: str, display_name: str | None, suspended: bool | None, dry_run: bool
) -> None:
    """Change a tenant; what is not given stays."""
    if display_name is None and suspended is None:
        raise click.UsageError("nothing to change: give --display-name or --suspended / --not-suspended")
    _change(invocation, tenant_id, display_name=display_name, suspended=suspended, dry_run=dry_run)


@tenants.command("suspend")
@click.argument("tenant_id")
@dry_run_option
@pass_invocation
def suspend(invocation: Invocation, tenant_id: str, dry_run: bool) -> None:
    """Refuse all requests of a tenant from now on."""
    _change(invocation, tenant_id, display_name=None, suspended=True, dry_run=dry_run)


@tenants.command("resume")
@click.argument("tenant_id")
@dry_run_option
@pass_invocation
def resume(invocation: Invocation, tenant_id: str, dry_run: bool) -> None:
    """Let a suspended tenant in again."""
    _change(invocation, tenant_id, display_name=None, suspended=False, dry_run=dry_run)


@tenants.command("delete")
@click.argument("tenant_id")
@yes_option
@dry_run_option
@pass_invocation
def delete(invocation: Invocation, tenant_id: str, yes: bool, dry_run: bool) -> None:
    """Delete a tenant with its keys and reservations."""
    confirm(f"Delete tenant {tenant_id} with its keys and reservations?", yes=yes, dry_run=dry_run)
    request = admin_pb2.DeleteTenantRequest(tenant_id=tenant_id, validate_only=dry_run, request_id=new_request_id())
    with invocation.admin() as connection:
        answer = connection.call(connection.admin.DeleteTenant, request)
    row = {"tenant_id": tenant_id, **message_row(answer), "dry_run": dry_run}
    columns = (
        Column("tenant_id", "tenant"),
        Column("keys_revoked", "keys revoked"),
        Column("reservations_deleted", "reservations deleted"),
    )
    invocation.output.row(row, columns)
    invocation.output.done(f"tenant {tenant_id} deleted", dry_run=dry_run)


def _read(connection: AdminConnection, tenant_id: str) -> admin_pb2.Tenant:
    return connection.call(connection.admin.GetTenant, admin_pb2.GetTenantRequest(tenant_id=tenant_id))


def _change(
    invocation: Invocation, tenant_id: str, *, display_name: str | None, suspended: bool | None, dry_run: bool
) -> None:
    with invocation.admin() as connection:
        tenant = _read(connection, tenant_id)
        if display_name is not None:
            tenant.display_name = display_name
        if suspended is not None:
            tenant.suspended = suspended
        request = admin_pb2.UpdateTenantRequest(tenant=tenant, validate_only=dry_run, request_id=new_request_id())
        changed = connection.call(connection.admin.UpdateTenant, request)
    invocation.output.row(message_row(changed), COLUMNS)
    invocation.output.done(f"tenant {tenant_id} changed", dry_run=dry_run)
