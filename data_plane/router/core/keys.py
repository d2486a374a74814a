"""API keys: their form, and whether one is genuine.

A key reads `fl-<key_id>-<secret>`. The platform stores the id and HMAC-SHA-256(pepper, whole key); the pepper is a file
that only the control plane and the routers have, so a stolen copy of the key table opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fairlead.errors import Reason, UnauthenticatedError

PREFIX: Final = "fl"
KEY_BYTES_MAX: Final = 256
PEPPER_BYTES_MIN: Final = 32

VERIFIED_MAX: Final = 4_096
"""Most authorization values that are remembered as genuine."""

_NAME_BYTES: Final = 16

_HINT = "send `authorization: Bearer fl-<id>-<secret>` with a key of your tenant"


class StoredKey(Protocol):
    """What the key table holds of a key (admin.ApiKey has it)."""

    key_id: str
    tenant_id: str
    key_hmac: bytes


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        tenant_id: The tenant the key belongs to.
        key_id: The key's public part, safe to log.
    """

    tenant_id: str
    key_id: str


def bearer_key(authorization: str | None) -> str:
    """Takes the key out of an authorization header.

    Args:
        authorization: The header's value, or None.

    Raises:
        UnauthenticatedError: There is no bearer key; reason MISSING_KEY.
    """
    scheme, _, key = (authorization or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise UnauthenticatedError(f"the request carries no API key: {_HINT}", reason=Reason.MISSING_KEY)
    return key


def key_id_of(key: str) -> str:
    """The public part of a key.

    Raises:
        UnauthenticatedError: It does not look like a key at all; reason UNKNOWN_KEY. The message never repeats it.
    """
    parts = key.split("-", 2)
    if len(key) > KEY_BYTES_MAX or len(parts) != 3 or parts[0] != PREFIX or not parts[1] or not parts[2]:
        raise _unknown()
    return parts[1]


def authenticate(authorization: str | None, table: Mapping[str, StoredKey], pepper: bytes) -> Caller:
    """Checks a request's key.

    Args:
        authorization: The authorization header's value, or None.
        table: Keys by id.
        pepper: The platform's pepper, 32 bytes or more.

    Returns:
        Who it is.

    Raises:
        UnauthenticatedError: No key, or one that is not in the table. Both kinds of wrong key (unknown id, wrong
            secret) look the same from outside.
    """
    key = bearer_key(authorization)
    key_id = key_id_of(key)
    stored = table.get(key_id)
    digest = hmac.digest(pepper, key.encode("utf-8", "surrogateescape"), hashlib.sha256)
    if stored is None or not hmac.compare_digest(digest, stored.key_hmac):
        raise _unknown()
    return Caller(stored.tenant_id, key_id)


class Verified:
    """Checks keys, and remembers those that were genuine: the second look at one costs no HMAC.

    A value is taken at its word only while the table holds the very record that it was checked against: a key that is
    revoked, replaced or written anew has another record or none, and is checked again. Records are never changed in
    place. Values are remembered by a hash keyed with a secret of this process, never as they came.

    Args:
        pepper: The platform's pepper, 32 bytes or more.
        values_max: Most values remembered, 1 or more; the one that came first makes room.
    """

    def __init__(self, pepper: bytes, *, values_max: int = VERIFIED_MAX) -> None:
        self._pepper = pepper
        self._values_max = values_max
        self._named = hashlib.blake2b(digest_size=_NAME_BYTES, key=hmac.digest(pepper, b"remembered", hashlib.sha256))
        self._known: dict[bytes, tuple[StoredKey, Caller]] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def authenticate(self, authorization: str | None, table: Mapping[str, StoredKey]) -> Caller:
        """Checks a request's key; see `authenticate`."""
        named = self._named.copy()
        named.update((authorization or "").encode("utf-8", "surrogatepass"))
        name = named.digest()
        known = self._known.get(name)
        if known is not None:
            stored, caller = known
            if table.get(caller.key_id) is stored:
                return caller
            del self._known[name]
        caller = authenticate(authorization, table, self._pepper)
        if len(self._known) >= self._values_max:
            del self._known[next(iter(self._known))]
        self._known[name] = table[caller.key_id], caller
        return caller


def _unknown() -> UnauthenticatedError:
    return UnauthenticatedError(f"the API key is unknown or revoked: {_HINT}", reason=Reason.UNKNOWN_KEY)
