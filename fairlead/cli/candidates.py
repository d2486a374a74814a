"""What the shell completes from the platform: names of tenants, models and cost profiles."""

from __future__ import annotations

from collections.abc import Callable

import click

from fairlead.admin.v1 import admin_pb2, calibration_pb2
from fairlead.cli.app import Invocation
from fairlead.cli.connection import AdminConnection
from fairlead.errors import FairleadError

TIMEOUT_S = 1.0
"""Longest that somebody who pressed Tab is kept waiting, seconds."""


def tenant_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Tenants whose name begins with what is typed; none where the control plane does not answer.

    Args:
        context: Of the command line so far.
        parameter: What is completed.
        incomplete: What is typed of it.
    """

    def names(connection: AdminConnection) -> list[str]:
        request = admin_pb2.ListTenantsRequest(page_size=1000)
        answer = connection.call(connection.admin.ListTenants, request, TIMEOUT_S)
        return [tenant.tenant_id for tenant in answer.tenants]

    return _beginning_with(incomplete, context, names)


def model_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Models whose name begins with what is typed; none where the control plane does not answer.

    Args:
        context: Of the command line so far.
        parameter: What is completed.
        incomplete: What is typed of it.
    """

    def names(connection: AdminConnection) -> list[str]:
        request = admin_pb2.ListModelsRequest(page_size=1000)
        answer = connection.call(connection.admin.ListModels, request, TIMEOUT_S)
        return [model.model_id for model in answer.models]

    return _beginning_with(incomplete, context, names)


def profile_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Cost profiles whose id begins with what is typed; none where the control plane does not answer.

    Args:
        context: Of the command line so far.
        parameter: What is completed.
        incomplete: What is typed of it.
    """

    def names(connection: AdminConnection) -> list[str]:
        request = calibration_pb2.ListProfilesRequest()
        answer = connection.call(connection.calibration.ListProfiles, request, TIMEOUT_S)
        return [listed.profile.profile_id for listed in answer.profiles]

    return _beginning_with(incomplete, context, names)


def _beginning_with(
    incomplete: str, context: click.Context, names: Callable[[AdminConnection], list[str]]
) -> list[str]:
    """Asks the control plane for names; whoever presses Tab sees no error."""
    try:
        with context.ensure_object(Invocation).admin() as connection:
            return [name for name in names(connection) if name.startswith(incomplete)]
    except FairleadError:
        return []
