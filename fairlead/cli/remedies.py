"""What may help where a calibration was refused or failed."""

from __future__ import annotations

from typing import Final

_QUIET: Final = "on a quiet host or another --replica the error may be smaller"
_BUDGET: Final = "a larger --budget may help"
_TIGHT: Final = "a larger --tpot-ms leaves the engine room"
# What an objection says, and what helps. The first that fits counts: the time to first token has its own objective.
_REMEDIES: Final = (
    ("first token", "a larger --ttft-ms, or none, may help"),
    ("keeps the objective", _TIGHT),
    ("time per token", _TIGHT),
    ("hold-out error", _QUIET),
    ("the capacity for", _QUIET),
    ("changed its speed", "find out what slows the machine, or take another --replica"),
    ("not tested on", _BUDGET),
    ("not finished", _BUDGET),
    ("be measured", _BUDGET),
)


def remedies(detail: str) -> tuple[str, ...]:
    """Says what may help, by the objections.

    Args:
        detail: Why a calibration ended, its objections separated by semicolons.

    Returns:
        Each remedy once, in the order of the objections; none for what is not known.
    """
    found = []
    for objection in detail.split(";"):
        found += [remedy for phrase, remedy in _REMEDIES if phrase in objection][:1]
    return tuple(dict.fromkeys(found))
