"""Slips of a unit: numbers that every check of their ranges lets through and that no replica has.

A profile comes from a file or from another installation; one whose coefficients are in milliseconds prices everything a
thousandfold, and nothing else says so. The bounds leave room for every replica there is, down to a CPU that decodes one
request at a time: what is beyond them is a typing error.
"""

from __future__ import annotations

from typing import Final

from fairlead.errors import InvalidArgumentError
from model_units.cost import CostProfile

# An objective below is in seconds, one above in microseconds. Sources: no engine makes a token in less than a
# millisecond, and nobody waits longer than ten seconds for each.
_TPOT_MIN_MS: Final = 1.0
_TPOT_MAX_MS: Final = 10_000.0
_INPUT_TOKEN_MAX_S: Final = 0.05
# Prompt tokens are computed together, so each takes far less than a decode step, which the objective bounds: measured
# 0.0004 to 0.003 of the objective; a CPU that gains nothing from computing them together, about 0.1.
_INPUT_SHARE_MAX: Final = 0.25
# An answer's token takes the whole replica at most as long as the objective allows for it; measured 0.0006 to 0.02.
_OUTPUT_SHARE_MAX: Final = 1.0
# Attention is a small part of one token's cost: measured 1e-5 to 3e-4, and 2e-4 to 2e-3.
_SQUARE_SHARE_MAX: Final = 1e-2
_CONTEXT_SHARE_MAX: Final = 1e-1

_COEFFICIENTS: Final = "replica-seconds (not milliseconds, mMU, or seconds per 1,000 tokens)"


def check_units(profile: CostProfile) -> None:
    """Refuses a profile one of whose numbers is most likely in another unit.

    Args:
        profile: From a file or a client.

    Raises:
        InvalidArgumentError: The message names the number, its bound and the unit it should have.
    """
    tpot_ms = profile.tpot_objective_ms
    if not _TPOT_MIN_MS <= tpot_ms <= _TPOT_MAX_MS:
        unit = "seconds" if tpot_ms < _TPOT_MIN_MS else "microseconds"
        raise _slip("tpot_objective_ms", f"{tpot_ms:g} looks like {unit}: it is in milliseconds, usually 20 to 200")
    for name, value, most, why in (
        ("a", profile.a, _INPUT_TOKEN_MAX_S, "for one token of a prompt"),
        ("a", profile.a, _INPUT_SHARE_MAX * tpot_ms / 1e3, f"at an objective of {tpot_ms:g} ms per output token"),
        ("b", profile.b, _OUTPUT_SHARE_MAX * tpot_ms / 1e3, f"at an objective of {tpot_ms:g} ms per output token"),
        ("d", profile.d, _SQUARE_SHARE_MAX * profile.a, f"beside an a of {profile.a:g}"),
        ("g", profile.g, _CONTEXT_SHARE_MAX * profile.b, f"beside a b of {profile.b:g}"),
    ):
        if value > most:
            raise _slip(name, f"{value:g} is too much {why} (at most {most:g}): coefficients are in {_COEFFICIENTS}")


def _slip(name: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"profile.{name} {problem}", field=f"profile.{name}")
