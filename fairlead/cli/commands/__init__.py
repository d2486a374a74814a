"""Every command, registered with the root."""

from fairlead.cli.app import root
from fairlead.cli.commands import (
    calibrate,
    capacity,
    doctor,
    events,
    fleet,
    keys,
    models,
    profiles,
    quota,
    replay,
    shell,
    simulate,
    talk,
    tenants,
    top,
)

__all__ = [
    "calibrate",
    "capacity",
    "doctor",
    "events",
    "fleet",
    "keys",
    "models",
    "profiles",
    "quota",
    "replay",
    "root",
    "shell",
    "simulate",
    "talk",
    "tenants",
    "top",
]
