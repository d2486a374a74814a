"""The listening sockets of all slots, opened once and kept while workers come and go.

Every slot has a socket of its own per port, all bound to the same address with SO_REUSEPORT: the kernel spreads new
connections over those that listen. A worker listens once it serves; from then on the socket takes connections whatever
becomes of the worker, because the supervisor has it too: what waits in it is taken by the next worker of the slot, or
by those of other slots meanwhile.
"""

from __future__ import annotations

import contextlib
import socket

from data_plane.relay.binding import bound
from fairlead.errors import InvalidArgumentError


class Listening:
    """The sockets of one port.

    Args:
        name: Of the setting that holds the port, for messages.
        host: Address to bind to.
        port: 0 takes a free one, the same for all.
        slots: How many sockets.

    Attributes:
        sockets: By slot; bound, none listens yet.
        port: The port they have.

    Raises:
        InvalidArgumentError: The port cannot be had; the message names it.
    """

    def __init__(self, name: str, host: str, port: int, slots: int) -> None:
        self.sockets: list[socket.socket] = []
        self.port = port
        try:
            with contextlib.ExitStack() as opened:
                for _ in range(slots):
                    self.sockets.append(opened.enter_context(bound(host, self.port, reuse_port=True)))
                    self.port = int(self.sockets[0].getsockname()[1])
                opened.pop_all()
        except OSError as error:
            raise InvalidArgumentError(
                f"cannot listen on {host}:{port} ({error.strerror}): is the port taken? Set {name}"
            ) from error

    @property
    def numbers(self) -> tuple[int, ...]:
        """File numbers by slot."""
        return tuple(each.fileno() for each in self.sockets)

    def close(self) -> None:
        """Lets go of them; a worker that has them listens on until it closes them too."""
        for each in self.sockets:
            each.close()
