"""What the platform's own processes show each other, derived from the pepper that they share.

It stands in until processes of the two planes prove who they are by mutual TLS. Whoever knows the pepper could mint API
keys for everything already, so that a token derived from it opens nothing new; nobody can find the pepper from it.
"""

from __future__ import annotations

import hashlib
import hmac

_LABEL = b"fairlead platform v1"
_SCHEME = "platform"


def platform_token(pepper: bytes) -> str:
    """Derives the platform's own token: HMAC-SHA256 of a fixed label, in hex.

    Args:
        pepper: The secret of API keys, 32 random bytes or more.

    Returns:
        64 hexadecimal digits, to be sent as `authorization: Platform <token>`.
    """
    return hmac.new(pepper, _LABEL, hashlib.sha256).hexdigest()


def is_platform(authorization: str | None, token: str) -> bool:
    """Says whether a call comes from the platform itself, in constant time.

    Args:
        authorization: Content of the metadata `authorization`; None where there is none.
        token: From `platform_token`.
    """
    scheme, _, given = (authorization or "").partition(" ")
    return scheme.lower() == _SCHEME and hmac.compare_digest(given.strip().encode(), token.encode())
