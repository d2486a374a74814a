"""What the shell completes from the platform: names of models and cost profiles."""

from __future__ import annotations

import click

from fairlead.admin.v1 import admin_pb2, calibration_pb2
from fairlead.cli.app import Invocation
from fairlead.errors import FairleadError

TIMEOUT_S = 1.0
"""Longest that somebody who pressed Tab is kept waiting, seconds."""


def model_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Models whose name begins with what is typed; none where the control plane does not answer.

    Args:
        context: Of the command line so far.
        parameter: What is completed.
        incomplete: What is typed of it.
    """
    try:
        with _invocation(context).admin() as connection:
            request = admin_pb2.ListModelsRequest(page_size=1000)
            answer = connection.call(connection.admin.ListModels, request, TIMEOUT_S)
    except FairleadError:
        return []
    return [model.model_id for model in answer.models if model.model_id.startswith(incomplete)]


def profile_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Cost profiles whose id begins with what is typed; none where the control plane does not answer.

    Args:
        context: Of the command line so far.
        parameter: What is completed.
        incomplete: What is typed of it.
    """
    try:
        with _invocation(context).admin() as connection:
            request = calibration_pb2.ListProfilesRequest()
            answer = connection.call(connection.calibration.ListProfiles, request, TIMEOUT_S)
    except FairleadError:
        return []
    found = [listed.profile.profile_id for listed in answer.profiles]
    return [profile_id for profile_id in found if profile_id.startswith(incomplete)]


def _invocation(context: click.Context) -> Invocation:
    return context.ensure_object(Invocation)
