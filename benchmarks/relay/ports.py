"""Ports that stay free until their process has started: none that the kernel gives to outgoing connections."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

from deploy.local.ports import HOST

_RANGE: Final = (12_000, 32_000)
"""Below where outgoing connections begin, 32768 by default on Linux."""


def quiet_ports(count: int) -> list[int]:
    """Ports, all different, on which nobody listens.

    Raises:
        RuntimeError: There are not so many.
    """
    found: list[int] = []
    for port in random.sample(range(*_RANGE), _RANGE[1] - _RANGE[0]):
        if len(found) == count:
            return found
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            found.append(port)
    raise RuntimeError(f"there are no {count} free ports from {_RANGE[0]} to {_RANGE[1]}")
