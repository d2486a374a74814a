"""Tickets as bytes: claims that a router signs and a replica checks.

    token = name of the key, 8 bytes | signature, 16 bytes | claims, a serialized engine.v1.TicketClaims

Every router process draws a secret of its own when it starts, and derives from it one key for each replica. So a ticket
is worth nothing at another replica, a replica can sign nothing for another one, and what a router signed ends with it.
The signature is BLAKE2b with a key, which is a MAC by construction; nothing of a token is parsed before it holds.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from fairlead.inference.v1 import inference_pb2

KEY_BYTES: Final = 32
TOKEN_BYTES_MAX: Final = 4096
"""Longest token that is looked at. Claims take some 200 bytes and the names in them."""
TICKET_LIFE_S_MAX: Final = 60.0
"""Longest time from a ticket's issue to its end."""

_NAME_BYTES: Final = 8
_SIGNATURE_BYTES: Final = 16
_CLAIMS_AT: Final = _NAME_BYTES + _SIGNATURE_BYTES
_digest: Final = hashlib.blake2b(digest_size=16)  # to be copied, as the key's


def replica_key(secret: bytes, replica_id: str) -> bytes:
    """Derives the key of one router's tickets for one replica.

    Args:
        secret: The router's own, 32 random bytes.
        replica_id: The replica.
    """
    return hashlib.blake2b(
        replica_id.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES, key=secret, person=b"fl replica key"
    ).digest()


def name_in(token: bytes) -> bytes:
    """The name of the key that a token claims to be signed with; whatever its first bytes are where it is none."""
    return token[:_NAME_BYTES]


class TicketKey:
    """Signs the tickets of one router for one replica.

    Args:
        key: From `replica_key`.

    Attributes:
        key: As given.
        name: What it is called in tokens; nobody can find the key from it.
    """

    __slots__ = ("_keyed", "key", "name")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.name = hashlib.blake2b(digest_size=_NAME_BYTES, key=key, person=b"fl key name").digest()
        # To be copied: making one takes twice as long.
        self._keyed = hashlib.blake2b(digest_size=_SIGNATURE_BYTES, key=key, person=b"fl ticket")

    def seal(self, claims: bytes) -> bytes:
        """Signs claims; returns the token."""
        return self.name + self._signature(claims) + claims

    def unseal(self, token: bytes) -> bytes | None:
        """Checks a token, in constant time; returns its claims, or None where they were not signed with this key."""
        if not _CLAIMS_AT <= len(token) <= TOKEN_BYTES_MAX:
            return None
        claims = token[_CLAIMS_AT:]
        good = hmac.compare_digest(token[_NAME_BYTES:_CLAIMS_AT], self._signature(claims))
        return claims if good else None

    def _signature(self, claims: bytes) -> bytes:
        signing = self._keyed.copy()
        signing.update(claims)
        return signing.digest()


def request_digest(request: inference_pb2.GenerateRequest) -> bytes:
    """What binds a ticket to one request: a hash over everything that the client sent, 16 bytes."""
    digest = _digest.copy()
    digest.update(request.SerializeToString(deterministic=True))
    return digest.digest()
