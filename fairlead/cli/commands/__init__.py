"""Every command, registered with the root."""

from fairlead.cli.app import root
from fairlead.cli.commands import capacity, doctor, fleet, keys, models, quota, replay, shell, talk, tenants, top

__all__ = [
    "capacity",
    "doctor",
    "fleet",
    "keys",
    "models",
    "quota",
    "replay",
    "root",
    "shell",
    "talk",
    "tenants",
    "top",
]
