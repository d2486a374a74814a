"""API keys: their form and what is stored of them.

A key reads `fl-<key_id>-<secret>`: the id is public and names the record, the secret is 256 random bits. Stored are the
id and HMAC-SHA-256(pepper, whole key), so that neither the table nor the pepper alone opens anything.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

PEPPER_BYTES_MIN = 32
KEY_ID_BYTES = 10
SECRET_BYTES = 32

# So that keys can be rotated: the new one is in use before the old one is revoked.
KEYS_PER_TENANT_MAX = 2


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made.

    Attributes:
        key_id: Public part, 16 characters of lower-case base32.
        secret_key: The whole key; shown once, stored nowhere.
        key_hmac: What is stored, 32 bytes.
    """

    key_id: str
    secret_key: str
    key_hmac: bytes


def make_key(id_bytes: bytes, secret_bytes: bytes, pepper: bytes) -> NewKey:
    """Makes a key out of randomness.

    Args:
        id_bytes: KEY_ID_BYTES random bytes.
        secret_bytes: SECRET_BYTES random bytes.
        pepper: The platform's pepper, PEPPER_BYTES_MIN or more.

    Returns:
        The key.
    """
    assert len(id_bytes) == KEY_ID_BYTES
    assert len(secret_bytes) == SECRET_BYTES
    assert len(pepper) >= PEPPER_BYTES_MIN
    key_id = base64.b32encode(id_bytes).decode().lower()
    secret = base64.urlsafe_b64encode(secret_bytes).decode().rstrip("=")
    secret_key = f"fl-{key_id}-{secret}"
    return NewKey(key_id, secret_key, hmac.digest(pepper, secret_key.encode(), hashlib.sha256))
