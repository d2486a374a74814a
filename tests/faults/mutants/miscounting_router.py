"""A router that counts a cancelled request twice."""

from __future__ import annotations

from data_plane.router.core.accounts import Accounts, Outcome
from tests.faults import mutants

_finish = Accounts.finish


def _finish_twice(self: Accounts, tenant_id: str, model_id: str, outcome: Outcome, reason: str) -> None:
    if outcome is Outcome.CANCELLED:
        _finish(self, tenant_id, model_id, outcome, reason)
        self._finished_total -= 1
    _finish(self, tenant_id, model_id, outcome, reason)


if __name__ == "__main__":
    Accounts.finish = _finish_twice  # type: ignore[method-assign]
    mutants.run("data_plane.router")
