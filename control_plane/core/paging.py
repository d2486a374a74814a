"""Pages of a sorted list: a token names the last id seen, so that changes in between never skip or repeat."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from fairlead.errors import InvalidArgumentError

T = TypeVar("T")

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000


def page(items: Sequence[T], identify: Callable[[T], str], page_size: int, page_token: str) -> tuple[list[T], str]:
    """Cuts one page out of a list.

    Args:
        items: Everything.
        identify: The id to sort by.
        page_size: 1 to PAGE_SIZE_MAX; 0 means PAGE_SIZE_DEFAULT.
        page_token: From the previous page, or empty.

    Returns:
        The page sorted by id, and the token of the next one, empty on the last page.

    Raises:
        InvalidArgumentError: page_size or page_token is wrong.
    """
    if not 0 <= page_size <= PAGE_SIZE_MAX:
        raise InvalidArgumentError(f"page_size {page_size} must be 0 to {PAGE_SIZE_MAX}", field="page_size")
    after = _decode(page_token) if page_token else ""
    rest = sorted((item for item in items if identify(item) > after), key=identify)
    cut = rest[: page_size or PAGE_SIZE_DEFAULT]
    return cut, _encode(identify(cut[-1])) if len(cut) < len(rest) else ""


def _encode(identity: str) -> str:
    return base64.urlsafe_b64encode(identity.encode()).decode()


def _decode(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidArgumentError(
            "page_token is not one of ours; start from the first page", field="page_token"
        ) from error
