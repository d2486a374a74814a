"""A router that journals no settlement."""

from __future__ import annotations

from typing import Any

from data_plane.router.usage_journal import UsageJournal
from tests.faults import mutants

if __name__ == "__main__":

    def _forget(self: UsageJournal, *_: Any) -> None:
        """Nothing is written down."""

    UsageJournal.append = _forget  # type: ignore[method-assign]
    mutants.run("data_plane.router")
