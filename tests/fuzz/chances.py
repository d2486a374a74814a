"""Reads choices out of the bytes that a fuzzer makes up, so that equal bytes mean equal choices everywhere."""

from __future__ import annotations


class Chances:
    """What bytes say, from their beginning; zeros when they are used up.

    Args:
        data: The fuzzer's input.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._data) - self._at

    def take(self, length: int) -> bytes:
        """So many bytes, fewer at the end."""
        taken = self._data[self._at : self._at + length]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def byte(self) -> int:
        """0 to 255."""
        return int.from_bytes(self.take(1), "big")

    def number(self) -> int:
        """A number of any size up to 32 bits, small ones most often."""
        return int.from_bytes(self.take(self.byte() % 5), "big")

    def some(self) -> bytes:
        """Up to 255 bytes."""
        return self.take(self.byte())

    def one_of(self, *choices: int) -> int:
        """One of several numbers."""
        return choices[self.byte() % len(choices)]
