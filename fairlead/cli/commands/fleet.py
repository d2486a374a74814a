"""fairlead replicas, services: what runs where."""

from __future__ import annotations

import click

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.app import Invocation, confirm, dry_run_option, pass_invocation, root, yes_option
from fairlead.cli.connection import new_request_id
from fairlead.cli.output import Column, drift, message_row, mu, state

REPLICAS = (
    Column("replica_id", "replica"),
    Column("model_id", "model"),
    Column("state", "state", state),
    Column("capacity_milli_mu_per_minute", "MU/min", mu),
    Column("engine", "engine"),
    Column("hardware", "hardware"),
    Column("drift_ratio", "drift", drift),
    Column("host", "host"),
    Column("address", "address"),
    Column("engine_restarts", "restarts"),
    Column("start_time", "since"),
)
SERVICES = (
    Column("service", "service"),
    Column("instance_id", "instance"),
    Column("leader", "leader"),
    Column("epoch", "epoch"),
    Column("address", "address"),
    Column("ops_address", "metrics"),
    Column("pid", "pid", str),
    Column("start_time", "since"),
)


@root.group()
def replicas() -> None:
    """List and drain replicas."""


@replicas.command("list")
@click.option("--model", default="", help="Only this model's.")
@pass_invocation
def list_(invocation: Invocation, model: str) -> None:
    """List the live replicas."""
    with invocation.admin() as connection:
        answer = connection.call(connection.admin.ListReplicas, admin_pb2.ListReplicasRequest(model_id=model))
    rows = [message_row(replica) for replica in answer.replicas]
    invocation.output.rows(rows, REPLICAS, empty="no replicas live: the autoscaler starts them, see fairlead doctor")


@replicas.command("drain")
@click.argument("replica_id")
@yes_option
@dry_run_option
@pass_invocation
def drain(invocation: Invocation, replica_id: str, yes: bool, dry_run: bool) -> None:
    """Let a replica finish what it has and take nothing new; it is replaced if it is needed."""
    confirm(f"Drain replica {replica_id}?", yes=yes, dry_run=dry_run)
    request = admin_pb2.DrainReplicaRequest(replica_id=replica_id, validate_only=dry_run, request_id=new_request_id())
    with invocation.admin() as connection:
        replica = connection.call(connection.admin.DrainReplica, request)
    invocation.output.row(message_row(replica), REPLICAS[:6])
    invocation.output.done(f"replica {replica_id} drains", dry_run=dry_run)


@root.command("services")
@pass_invocation
def services(invocation: Invocation) -> None:
    """Show which processes run and who leads."""
    with invocation.admin() as connection:
        answer = connection.call(connection.admin.ListServices, admin_pb2.ListServicesRequest())
    rows = [message_row(service) for service in answer.services]
    invocation.output.rows(rows, SERVICES, empty="no service has registered itself: see fairlead doctor")
