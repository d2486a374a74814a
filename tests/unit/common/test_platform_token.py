"""The platform's own token is derived from the pepper, and nothing else passes for it."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from common.platform_token import is_platform, platform_token

PEPPER = bytes(range(32))


def test_token_is_the_documented_hmac() -> None:
    """Two processes with one pepper derive the same token, another pepper another one."""
    assert platform_token(PEPPER) == hmac.new(PEPPER, b"fairlead platform v1", hashlib.sha256).hexdigest()
    assert platform_token(PEPPER) != platform_token(PEPPER[::-1])


@pytest.mark.parametrize("scheme", ["Platform", "platform", "PLATFORM"])
def test_token_opens(scheme: str) -> None:
    """The right token is accepted; the scheme's case does not matter, as in HTTP."""
    token = platform_token(PEPPER)
    assert is_platform(f"{scheme} {token}", token)


@pytest.mark.parametrize(
    "authorization", [None, "", "Platform", "Platform ", "Bearer {token}", "{token}", "Platform {token}0", "Platform é"]
)
def test_everything_else_is_refused(authorization: str | None) -> None:
    """No header, another scheme, a tenant's key, a wrong or longer token do not open."""
    token = platform_token(PEPPER)
    assert not is_platform(authorization.format(token=token) if authorization else authorization, token)
