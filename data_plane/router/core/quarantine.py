"""Poison requests: those that kill whatever runs them, and how they are told from those that merely stood by.

When a replica is lost, everything it was running is suspect. A prompt that was lost with two different replicas
is refused for a while; one that was answered is innocent and its suspicion ends. Retries of what was lost in one crash
go to different replicas, as far as there are any, so that the poison takes none of the bystanders down with it a second
time.

Example: r1 dies with A, B and C. They are tried again on r2, r3 and r4; r3 dies. Only B was there twice: B is refused.

The network may lose two replicas that died of nothing at all. So a refusal ends soon, for one try: if that is answered,
the prompt is innocent, and if it costs another replica, the prompt is refused twice as long as before.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

LOST_REPLICAS: Final = 2
"""With so many different replicas lost, a prompt is refused. The same as the attempts that a request has, so that it
is refused when its client sends it again."""

QUARANTINE_S: Final = 60.0
"""How long a prompt is refused that has cost LOST_REPLICAS; it doubles with every further one. An assumption: a replica
is back in about a minute, so true poison takes away one at a time at most, and a false alarm costs a minute."""

QUARANTINE_S_MAX: Final = 600.0
"""Longest refusal, and how long a suspicion lasts that has not come to one."""

SUSPECTS_MAX: Final = 4_096
"""Most prompts remembered; the one suspected longest ago is forgotten first."""

_CRASHES_MAX: Final = 256
_NS_PER_S: Final = 1_000_000_000
_REMEMBERED_NS: Final = int(QUARANTINE_S_MAX * _NS_PER_S)


class Suspect(NamedTuple):
    """What is known of a prompt that was lost.

    Attributes:
        replica_ids: Replicas that were lost while running it.
        until_ns: Until when that is remembered.
        refused_until_ns: Until when it is refused; 0 while it is only suspected.
    """

    replica_ids: frozenset[str]
    until_ns: int
    refused_until_ns: int


class Crash(NamedTuple):
    """What is known of a replica that was lost.

    Attributes:
        tried: Replicas on which what it was running is tried again.
        until_ns: Until when that is remembered.
    """

    tried: set[str]
    until_ns: int


class Quarantine:
    """What one router suspects."""

    def __init__(self) -> None:
        self._suspects: OrderedDict[bytes, Suspect] = OrderedDict()
        self._expire_ns = 0  # nothing of them is over before
        self._crashes: OrderedDict[str, Crash] = OrderedDict()  # the first one first

    def __bool__(self) -> bool:
        """Whether anything is suspected: while nothing is, no prompt needs a fingerprint."""
        return bool(self._suspects)

    def refused_s(self, fingerprint: bytes, now_ns: int) -> float | None:
        """How long a prompt is still refused; None when it is not.

        Args:
            fingerprint: Of the prompt (`fingerprint`).
            now_ns: Monotonic now.
        """
        self._expire(now_ns)
        suspect = self._suspects.get(fingerprint)
        if suspect is None or suspect.refused_until_ns <= now_ns:
            return None
        return (suspect.refused_until_ns - now_ns) / _NS_PER_S

    def try_once(self, fingerprint: bytes, now_ns: int) -> None:
        """A prompt is being sent to a replica: where it was refused, the others wait for what becomes of it.

        Args:
            fingerprint: Of the prompt, which is not refused now.
            now_ns: Monotonic now.
        """
        suspect = self._suspects.get(fingerprint)
        if suspect is not None and suspect.refused_until_ns:
            until_ns = now_ns + _refusal_ns(suspect.replica_ids)
            self._suspects[fingerprint] = suspect._replace(
                refused_until_ns=until_ns, until_ns=max(suspect.until_ns, until_ns)
            )

    def lost(self, fingerprint: bytes, replica_id: str, now_ns: int) -> bool:
        """A replica was lost while it ran a prompt.

        Args:
            fingerprint: Of the prompt.
            replica_id: The replica.
            now_ns: Monotonic now.

        Returns:
            Whether the prompt is refused from now on.
        """
        self._expire(now_ns)
        if replica_id not in self._crashes:
            self._crashes[replica_id] = Crash(set(), now_ns + _REMEMBERED_NS)
            if len(self._crashes) > _CRASHES_MAX:
                self._crashes.popitem(last=False)
        before = self._suspects.pop(fingerprint, None)
        replica_ids = frozenset({replica_id})
        if before is not None:
            replica_ids |= before.replica_ids
        refusal_ns = _refusal_ns(replica_ids)
        refused_until_ns = now_ns + refusal_ns if refusal_ns else 0
        self._suspects[fingerprint] = Suspect(replica_ids, now_ns + refusal_ns + _REMEMBERED_NS, refused_until_ns)
        if len(self._suspects) > SUSPECTS_MAX:
            self._suspects.popitem(last=False)
        return bool(refusal_ns)

    def answered(self, fingerprint: bytes) -> None:
        """A prompt was answered to its end, so it kills nothing."""
        self._suspects.pop(fingerprint, None)

    def elsewhere(self, lost_replica_ids: Iterable[str], replica_ids: Collection[str]) -> set[str]:
        """Where a request that was lost should not be tried again because another one of the same crash was.

        Args:
            lost_replica_ids: The replicas that it was lost with.
            replica_ids: Where it may be tried at all.

        Returns:
            Replica ids to leave out; none where that would leave nothing.
        """
        taken: set[str] = set()
        for replica_id in lost_replica_ids:
            crash = self._crashes.get(replica_id)
            if crash is not None:
                taken |= crash.tried
        return taken if any(each not in taken for each in replica_ids) else set()

    def tried_again(self, lost_replica_id: str, replica_id: str) -> None:
        """What was lost with one replica is being tried on another.

        Args:
            lost_replica_id: Which was lost.
            replica_id: Where it is tried now.
        """
        crash = self._crashes.get(lost_replica_id)
        if crash is not None:
            crash.tried.add(replica_id)

    def _expire(self, now_ns: int) -> None:
        """Forgets what is over."""
        if self._suspects and self._expire_ns <= now_ns:
            for fingerprint in [each for each, suspect in self._suspects.items() if suspect.until_ns <= now_ns]:
                del self._suspects[fingerprint]
            # A suspicion that is still to come lasts this long at least.
            self._expire_ns = min((each.until_ns for each in self._suspects.values()), default=now_ns + _REMEMBERED_NS)
            self._expire_ns = min(self._expire_ns, now_ns + _REMEMBERED_NS)
        while self._crashes and next(iter(self._crashes.values())).until_ns <= now_ns:
            self._crashes.popitem(last=False)


def _refusal_ns(replica_ids: Collection[str]) -> int:
    """How long a prompt is refused that these replicas were lost with; 0 for not at all."""
    beyond = len(replica_ids) - LOST_REPLICAS
    if beyond < 0:
        return 0
    return int(min(QUARANTINE_S_MAX, QUARANTINE_S * 2.0 ** min(beyond, 16)) * _NS_PER_S)


def fingerprint(tenant_id: str, model_id: str, chunks: Iterable[bytes]) -> bytes:
    """What a prompt is remembered by: a hash, of which nothing can be read.

    Args:
        tenant_id: Whose. Another tenant's equal prompt is another one: nobody can have somebody else's refused.
        model_id: Of which model.
        chunks: The prompt (`model_units.prefix.prompt_chunks`).
    """
    digest = hashlib.blake2b(f"{tenant_id}\0{model_id}\0".encode("utf-8", "surrogatepass"), digest_size=16)
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()
