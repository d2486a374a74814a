"""Keys, pages and remembered results of the admin API."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from common.clock import NS_PER_S, MonotonicNs
from control_plane.core.keys import make_key
from control_plane.core.paging import page
from control_plane.core.remembered import ENTRIES_MAX, Remembered
from fairlead.errors import InvalidArgumentError

PEPPER = b"p" * 32


def test_a_key_has_the_documented_form_and_hmac() -> None:
    """Proves `fl-<16 base32>-<secret>` of 256 bits, and that the HMAC covers the whole key."""
    made = make_key(bytes(10), bytes(range(32)), PEPPER)
    prefix, key_id, secret = made.secret_key.split("-", 2)
    assert (prefix, key_id, len(key_id)) == ("fl", made.key_id, 16)
    assert key_id.isalnum()
    assert len(secret) == 43
    assert made.key_hmac == hmac.new(PEPPER, made.secret_key.encode(), hashlib.sha256).digest()


def test_pages_cover_a_list_exactly_once_while_it_changes() -> None:
    """Proves paging by last id: what is inserted or deleted in between neither skips nor repeats the others."""
    first, token = page(["d", "b", "a", "c"], str, 2, "")
    assert (first, bool(token)) == (["a", "b"], True)
    second, token = page(["d", "b", "aa", "c", "e"], str, 2, token)
    assert second == ["c", "d"]
    assert page(["d", "e"], str, 2, token) == (["e"], "")
    assert page([], str, 0, "") == ([], "")


# "_w==" is a byte that is no UTF-8.
@pytest.mark.parametrize(
    ("size", "token", "field"),
    [(-1, "", "page_size"), (1001, "", "page_size"), (1, "%", "page_token"), (1, "_w==", "page_token")],
)
def test_wrong_pages_are_refused_by_name(size: int, token: str, field: str) -> None:
    """Proves that page_size and page_token are checked."""
    with pytest.raises(InvalidArgumentError) as refused:
        page(["a"], str, size, token)
    assert refused.value.field == field


def at(seconds: float) -> MonotonicNs:
    return MonotonicNs(round(seconds * NS_PER_S))


def test_a_repeated_request_id_gets_the_first_result_for_ten_minutes() -> None:
    """Proves AIP-155: same id, same request, same result; then forgotten."""
    memory: Remembered[str] = Remembered()
    assert memory.recall("Create", "id", b"f", at(0)) is None
    memory.remember("Create", "id", b"f", "first", at(0))
    assert memory.recall("Create", "id", b"f", at(599)) == "first"
    assert memory.recall("Delete", "id", b"f", at(599)) is None
    assert memory.recall("Create", "id", b"f", at(600)) is None


def test_a_request_id_means_one_request() -> None:
    """Proves that reusing an id for something else is refused instead of answered wrongly."""
    memory: Remembered[str] = Remembered()
    memory.remember("Create", "id", b"f", "first", at(0))
    with pytest.raises(InvalidArgumentError):
        memory.recall("Create", "id", b"g", at(1))


def test_memory_is_bounded() -> None:
    """Proves that a flood of mutations forgets the oldest instead of growing."""
    memory: Remembered[str] = Remembered()
    for number in range(ENTRIES_MAX + 1):
        memory.remember("Create", str(number), b"f", "x", at(0))
    assert memory.recall("Create", "0", b"f", at(1)) is None
    assert memory.recall("Create", "1", b"f", at(1)) == "x"
