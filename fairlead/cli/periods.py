"""Times and periods as people write them on the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from fairlead.errors import InvalidArgumentError

_DURATION = re.compile(r"(\d{1,6})([mhdw])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str, option: str, now: datetime) -> datetime:
    """Reads a moment.

    Args:
        text: A date (2026-11-22: its begin), a time (2026-11-22T19:30, with or without a zone; UTC where none is
            given), "now", or how long ago (90m, 24h, 7d, 2w).
        option: Where it was written, for the error.
        now: The moment "now" means, with a zone.

    Returns:
        The moment in UTC.

    Raises:
        InvalidArgumentError: It is none of these, or beyond the calendar.
    """
    text = text.strip()
    if text == "now":
        return now.astimezone(UTC)
    ago = _DURATION.fullmatch(text)
    try:
        if ago:
            return now.astimezone(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        read = datetime.fromisoformat(text)
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgumentError(
            f"{option} {text!r} is not a time: write a date (2026-11-22), a time (2026-11-22T19:00, UTC), how long ago "
            "(24h, 7d) or now",
            field=option.lstrip("-"),
        ) from None


def period(start: str | None, end: str | None, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Reads --start and --end.

    Args:
        start: As for `moment`; None where it is not given.
        end: Likewise.
        now: The moment, with a zone.

    Raises:
        InvalidArgumentError: One is no time, or the end does not come after the start.
    """
    first = None if start is None else moment(start, "--start", now)
    last = None if end is None else moment(end, "--end", now)
    if first is not None and first >= (last or now):
        shown = f"--end {end}" if last is not None else "now"
        raise InvalidArgumentError(f"--start {start} must be before {shown}", field="start")
    return first, last
