"""A router whose leases never expire."""

from __future__ import annotations

import functools
from typing import Any

from data_plane.router.core.holds import Holds
from tests.faults import mutants

_HOUR_NS = 3_600_000_000_000


def _later(method: Any) -> Any:
    @functools.wraps(method)
    def changed(*arguments: Any, **named: Any) -> Any:
        named["expires_ns"] += _HOUR_NS
        return method(*arguments, **named)

    return changed


if __name__ == "__main__":
    Holds.apply = _later(Holds.apply)  # type: ignore[method-assign]
    Holds.renew = _later(Holds.renew)  # type: ignore[method-assign]
    mutants.run("data_plane.router")
