"""What workers are called, and the command that starts one."""

from __future__ import annotations

import sys


def worker_name(slot: int, turn: int) -> str:
    """A worker within its supervisor: "1", "2" ...; "1b" where it replaced "1", and the next one is "1" again.

    Two processes of one router id at the same time would be taken for one router that was restarted: the limiter gives
    the new one nothing before the leases of the old one have ended, and requests within their quota were refused
    meanwhile. Under two names the new one joins, and the old one leaves what it has.
    """
    return f"{slot + 1}{'b' if turn else ''}"


def router_command(instance_id: str) -> list[str]:
    """The command of a worker, by its instance id.

    It has the supervisor's own arguments and reads its files again: a roll puts changed settings into force.
    """
    own = {"workers": 1, "instance_id": instance_id, "ops_port": 0, "supervisor_pid": 0}
    flags = (f"--{name.replace('_', '-')}={value}" for name, value in own.items())
    return [sys.executable, "-m", "data_plane.router", *sys.argv[1:], *flags]
