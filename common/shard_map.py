"""The key space of a model's requests, and an assignment as whoever routes by it reads it.

    key = hash of the tenant (32 bits) | hash of the session (32 bits)

A tenant's requests are neighbours, and a session's requests have one key. Whatever a key is, some slice holds it: an
assignment has an answer for tenants it never heard of.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

from fairlead.errors import InvalidArgumentError
from fairlead.sharding.v1 import sharding_pb2

KEY_BITS: Final = 64
SESSION_BITS: Final = 32
KEYS: Final = 1 << KEY_BITS
"""Keys there are: they run from 0 to one less."""

GENERATION_MAX: Final = 1 << 62
"""Largest incarnation and number that anybody takes: successors fit into 64 bits for longer than anybody runs, so that
one absurd assignment cannot stop all that come after it."""

NUMBER_CONTINUED_MAX: Final = GENERATION_MAX >> 1
"""Above this number, which no clock reaches, a line of assignments goes on in the next incarnation."""

SECONDS_MAX: Final = 253_402_300_799
"""The end of the year 9999, after which no time can be written. Source: google.protobuf.Timestamp."""

_SESSIONS: Final = 1 << SESSION_BITS
_hash32: Final = hashlib.blake2b(digest_size=4)  # to be copied: making one takes twice as long


@functools.lru_cache(maxsize=65_536)
def tenant_keys(tenant_id: str) -> tuple[int, int]:
    """A tenant's part of the key space: its first key, and the first one after its last."""
    digest = hashlib.blake2b(tenant_id.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    first = int.from_bytes(digest, "big") << SESSION_BITS
    return first, first + _SESSIONS


def shard_key(tenant_id: str, affinity: str) -> int:
    """The key of a request.

    Args:
        tenant_id: Whose.
        affinity: What its requests that should meet have in common: the session, else the beginning of the prompt, else
            nothing but the request itself.
    """
    named = _hash32.copy()
    named.update(affinity.encode("utf-8", "surrogatepass"))
    return tenant_keys(tenant_id)[0] | int.from_bytes(named.digest(), "big")


@dataclass(frozen=True, order=True)
class Generation:
    """Orders the assignments of one model; the zero generation is older than any.

    Attributes:
        incarnation: Changes when an assigner starts from nothing.
        number: Grows with every assignment of an incarnation.
    """

    incarnation: int = 0
    number: int = 0

    @property
    def sound(self) -> bool:
        """Whether holders and the sharder take assignments of it: it is in range, and leaves room for a successor."""
        number_max = GENERATION_MAX if self.incarnation < GENERATION_MAX else NUMBER_CONTINUED_MAX
        return 0 < self.incarnation <= GENERATION_MAX and self.number <= number_max

    def successor(self, now_ms: int) -> Generation:
        """The next one of its line: later than it and, wherever the clock is, sound.

        Args:
            now_ms: Wall clock.
        """
        number = max(now_ms, self.number + 1)
        if number <= NUMBER_CONTINUED_MAX:
            return Generation(self.incarnation, number)
        return Generation(self.incarnation + 1, max(0, min(now_ms, NUMBER_CONTINUED_MAX)))

    @classmethod
    def of(cls, message: sharding_pb2.Generation) -> Generation:
        """Reads the message."""
        return cls(message.incarnation, message.number)

    def message(self) -> sharding_pb2.Generation:
        """As a message."""
        return sharding_pb2.Generation(incarnation=self.incarnation, number=self.number)


class ShardMap:
    """An assignment, ready to be asked.

    Args:
        assignment: As stored or handed over.

    Attributes:
        model_id: The model.
        generation: Its age.
        replica_ids: Every replica that it names, sorted.

    Raises:
        InvalidArgumentError: It is damaged: no slices, slices out of order or empty, a replica it does not list, or a
            time that cannot be written.
    """

    __slots__ = ("_firsts", "_subsets", "generation", "model_id", "replica_ids")

    def __init__(self, assignment: sharding_pb2.Assignment) -> None:
        self.model_id = assignment.model_id
        self.generation = Generation.of(assignment.generation)
        self.replica_ids = tuple(assignment.replica_ids)
        self._firsts = [each.first_key for each in assignment.slices]
        if not self._firsts or self._firsts[0] or any(a >= b for a, b in itertools.pairwise(self._firsts)):
            raise _damaged(assignment, "its slices do not cover the key space in order")
        if any(
            max(each.frozen_until.seconds, each.shrinkable_since.seconds) > SECONDS_MAX for each in assignment.slices
        ):
            raise _damaged(assignment, "a slice has a time that is out of range")
        shared: dict[tuple[str, ...], tuple[str, ...]] = {}
        try:
            subsets = [tuple(self.replica_ids[place] for place in each.replicas) for each in assignment.slices]
        except IndexError:
            raise _damaged(assignment, "a slice names a replica that it does not list") from None
        if not all(subsets):
            raise _damaged(assignment, "a slice has no replicas")
        # One tuple per subset however many slices have it: routers keep what they know of a subset by its identity.
        self._subsets = [shared.setdefault(subset, subset) for subset in subsets]

    def subset(self, key: int) -> tuple[str, ...]:
        """The replicas that serve a key."""
        return self._subsets[bisect_right(self._firsts, key) - 1]

    def subsets(self, first_key: int, end_key: int) -> list[tuple[str, ...]]:
        """The subsets of every slice that has keys from `first_key` to one before `end_key`, in order."""
        low = bisect_right(self._firsts, first_key) - 1
        high = bisect_right(self._firsts, end_key - 1)
        return self._subsets[low:high]


def _damaged(assignment: sharding_pb2.Assignment, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"the assignment of {assignment.model_id!r} is damaged: {why}", field="assignment")
