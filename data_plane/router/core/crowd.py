"""Members of groups, and always at hand: which group has most, and who came to it last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

G = TypeVar("G", bound=Hashable)
M = TypeVar("M", bound=Hashable)


class Crowd(Generic[G, M]):
    """Counts members by group; everything takes the same time however many there are.

    Attributes:
        most: Members of the largest group; 0 when there are none.
    """

    def __init__(self) -> None:
        self.most = 0
        self._members: dict[G, OrderedDict[M, None]] = {}
        self._by_count: dict[int, OrderedDict[G, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def count(self, group: G) -> int:
        """Members of a group."""
        members = self._members.get(group)
        return 0 if members is None else len(members)

    def youngest_of_most(self) -> M:
        """Who came last to the group with most members; of several such groups, to the one that reached it last.

        Raises:
            IndexError: There is nobody.
        """
        if not self.most:
            raise IndexError("nobody is here")
        group = next(reversed(self._by_count[self.most]))
        return next(reversed(self._members[group]))

    def add(self, group: G, member: M, *, eldest: bool = False) -> None:
        """Adds a member that is not here yet.

        Args:
            group: Where it belongs.
            member: Who.
            eldest: It counts as having been there before the others.
        """
        members = self._members.get(group)
        if members is None:
            members = self._members[group] = OrderedDict()
        members[member] = None
        if eldest:
            members.move_to_end(member, last=False)
        self._count += 1
        self._moved(group, len(members) - 1, len(members))

    def remove(self, group: G, member: M) -> None:
        """Removes a member.

        Raises:
            KeyError: It is not here.
        """
        members = self._members[group]
        del members[member]
        self._count -= 1
        self._moved(group, len(members) + 1, len(members))
        if not members:
            del self._members[group]

    def _moved(self, group: G, before: int, after: int) -> None:
        if before:
            level = self._by_count[before]
            del level[group]
            if not level:
                del self._by_count[before]
        if after:
            self._by_count.setdefault(after, OrderedDict())[group] = None
        # A count moves by one, so the largest does too.
        if after > self.most or (self.most and self.most not in self._by_count):
            self.most = after
