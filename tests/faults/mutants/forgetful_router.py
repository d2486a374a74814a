"""A router that throws its leases away as soon as the limiter does not answer."""

from __future__ import annotations

from typing import Any

from data_plane.router.limiter_client import LimiterClient
from tests.faults import mutants


def _forget(self: LimiterClient, error: Exception) -> None:
    holds: Any = self._holds
    for bucket in holds._buckets.values():
        bucket.terms = None


if __name__ == "__main__":
    LimiterClient._note_failure = _forget  # type: ignore[method-assign]
    mutants.run("data_plane.router")
