"""What is asked of a connection's socket, and told to the one it comes from."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from typing import Final

from data_plane.relay.http1.limits import Patience

UNSENT_BYTES_MAX: Final = 128 << 10
"""Bytes that wait in the kernel; it would take megabytes, which nobody could count or take back."""

_int: Final = struct.Struct("i")
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


def unread_bytes(transport: asyncio.Transport) -> int:
    """What of that which the kernel took the client's machine has not confirmed."""
    plain = transport.get_extra_info("socket")
    if plain is None or plain.fileno() < 0:
        return 0
    (count,) = _int.unpack(fcntl.ioctl(plain.fileno(), termios.TIOCOUTQ, bytes(_int.size)))
    return int(count)


def tune(listening: socket.socket, patience: Patience) -> None:
    """Small answers at once, and a peer whose machine is gone is noticed: on every connection, which inherits it all.

    Args:
        listening: Where connections come from.
        patience: How long clients are waited for.
    """
    if listening.family not in (socket.AF_INET, socket.AF_INET6):
        return
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        listening.setsockopt(socket.IPPROTO_TCP, option, value)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(patience.stuck_s * 1000)))
