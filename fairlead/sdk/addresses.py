"""Which router the next try goes to: round robin over those not known to be down."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from fairlead.errors import InvalidArgumentError

REST_S = 5.0
"""How long a router that could not be reached is left alone while others are there, seconds."""


class AddressBook:
    """The routers of one client. Safe to use from several threads.

    Args:
        addresses: host:port of each router, at least one.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            _check(address)
        if not addresses:
            raise InvalidArgumentError("no address: pass host:port of a router, or set FAIRLEAD_ADDRESS")
        self._addresses = tuple(dict.fromkeys(addresses))
        self._resting_until_s: dict[str, float] = {}
        self._next = 0
        self._lock = threading.Lock()

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses, in the order given."""
        return self._addresses

    def pick(self, now_s: float) -> str:
        """Chooses the address of the next try.

        Args:
            now_s: Monotonic time, seconds.

        Returns:
            The next address in turn that does not rest; when all rest, the one that has rested longest.
        """
        with self._lock:
            for offset in range(len(self._addresses)):
                position = (self._next + offset) % len(self._addresses)
                address = self._addresses[position]
                if self._resting_until_s.get(address, now_s) <= now_s:
                    self._next = position + 1
                    return address
            return min(self._addresses, key=lambda address: self._resting_until_s[address])

    def report_failure(self, address: str, now_s: float) -> None:
        """Notes that `address` could not serve at monotonic time `now_s`, seconds."""
        with self._lock:
            self._resting_until_s[address] = now_s + REST_S

    def report_success(self, address: str) -> None:
        """Notes that `address` serves."""
        with self._lock:
            self._resting_until_s.pop(address, None)

    def has_fresh(self, now_s: float) -> bool:
        """Whether an address is left that is not known to be down at monotonic time `now_s`, seconds."""
        with self._lock:
            return any(self._resting_until_s.get(address, now_s) <= now_s for address in self._addresses)


def _check(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in address:
        raise InvalidArgumentError(
            f"{address!r} is not an address: write host:port, for example 127.0.0.1:8081", field="address"
        )
