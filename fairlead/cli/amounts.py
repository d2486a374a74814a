"""Model units as people write them: numbers of MU per minute become whole milli-MU, or are refused by what is wrong."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import click

from fairlead.reservation_limits import RATE_MAX_MILLI_MU_PER_MINUTE

_RATE_MAX = RATE_MAX_MILLI_MU_PER_MINUTE // 1000


def milli(value: Any) -> int:
    """Turns an amount into milli-MU, exactly.

    Args:
        value: A number, or a text that is one; 0 to a billion MU.

    Returns:
        The same in thousandths, rounded to the nearest.

    Raises:
        ValueError: It is no such number; the text says why, to go on after the amount's name.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError(f"{shown(value)} must be a number of MU per minute")
    try:
        amount = Decimal(value) if isinstance(value, int) else Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{shown(value)} must be a number of MU per minute") from None
    if not amount.is_finite():
        raise ValueError(f"{shown(value)} must be a finite number of MU per minute")
    if amount < 0:
        raise ValueError(f"{shown(value)} must not be negative")
    if amount > _RATE_MAX:  # before multiplying, which may overflow
        raise ValueError(f"{shown(value)} is more than {_RATE_MAX:,} MU per minute")
    rounded = int((amount * 1000).to_integral_value())
    if amount and not rounded:
        raise ValueError(f"{shown(value)} is less than 0.001 MU per minute")
    return rounded


def decimal(rate: int) -> str:
    """Writes milli-MU as MU, exactly: 1500 as 1.5."""
    return f"{rate // 1000}.{rate % 1000:03}".rstrip("0").rstrip(".")


def shown(value: Any) -> str:
    """The beginning of a value that is refused, a text in quotation marks."""
    try:
        return repr(value)[:40] if isinstance(value, str) else str(value)[:40]
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"


class ModelUnits(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """An option in MU per minute; its value is in milli-MU.

    Args:
        above_zero: Whether 0 is refused.
    """

    name = "MU"

    def __init__(self, *, above_zero: bool = False) -> None:
        self._above_zero = above_zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Converts what was typed."""
        try:
            rate = milli(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        if self._above_zero and not rate:
            self.fail(f"{shown(value)} must be above 0.", param, ctx)
        return rate


class TenantAmount(click.ParamType):  # type: ignore[type-arg]  # likewise
    """An option TENANT=MU; its value is (tenant, milli-MU), above 0."""

    name = "TENANT=MU"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Converts what was typed."""
        if isinstance(value, tuple):
            return value
        tenant_id, equals, amount = str(value).partition("=")
        if not tenant_id or not equals:
            self.fail(f"{value[:80]!r} must be TENANT=MU, such as acme=300.", param, ctx)
        return tenant_id, ModelUnits(above_zero=True).convert(amount, param, ctx)
