"""A router that forgets to end every third hold."""

from __future__ import annotations

from data_plane.router.core.holds import Hold, Holds
from tests.faults import mutants

_settle = Holds.settle
_ended = 0


def _settle_most(self: Holds, hold: Hold, cost_milli_mu: int, now_ns: int) -> None:
    global _ended
    _ended += 1
    if _ended % 3:
        _settle(self, hold, cost_milli_mu, now_ns)
    else:
        hold.open = False


if __name__ == "__main__":
    Holds.settle = _settle_most  # type: ignore[method-assign]
    mutants.run("data_plane.router")
