"""A limiter that gives every router the whole quota: the limit is multiplied by the number of routers."""

from __future__ import annotations

from ratelimiter.core import lease
from ratelimiter.core.roster import Roster
from tests.faults import mutants

if __name__ == "__main__":
    lease.resplit_quota = lambda quota, wants, has: [quota] * len(wants)  # type: ignore[attr-defined]
    Roster.held = lambda self, workload: 0  # type: ignore[method-assign]
    mutants.run("ratelimiter")
