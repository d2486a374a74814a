"""A router with another rule of admission, for comparison: `python -m benchmarks.quota.rival_router count_after ...`.

Everything else is the ordinary router: the same pricing function, the same relay, the same settlement.

    count_after   a request is admitted while what was settled in the last minute, over all routers, is below the quota;
                  requests in flight have not been counted yet. What gateways with a shared counter do.
    max_tokens    a request holds its price at max_tokens until it ends. What a reservation without an estimate does.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from common.service import run_service
from data_plane.router import router, wiring
from data_plane.router.config import RouterConfig
from data_plane.router.core.holds import BucketKey, Hold, Holds, LeaseTerms, Refusal, Refused
from data_plane.router.core.pricing import Price, Pricing

COUNTER: Final = "BENCH_QUOTA_COUNTER"
"""Environment variable: the file that stands for the shared counter."""
RULES: Final = ("count_after", "max_tokens")
_WINDOW_S: Final = 60.0
# Gateways keep a copy of the shared counter and refresh it about this often.
_COPY_AGE_S_MAX: Final = 0.1
_RETRY_S: Final = 1.0
_UNLIMITED: Final = 10**12


class SharedCounter:
    """What was settled in the last minute, by tenant, over all routers: a file that every router appends to.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._append = path.open("ab", buffering=0)
        self._read = path.open("rb")
        self._rest = b""
        self._entries: deque[tuple[float, BucketKey, int]] = deque()
        self._sums: dict[BucketKey, int] = {}
        self._read_s = 0.0

    def add(self, key: BucketKey, amount: int) -> None:
        """Counts a settlement."""
        self._append.write(f"{time.monotonic()} {key[0]} {key[1]} {amount}\n".encode())

    def used(self, key: BucketKey) -> int:
        """Settled in the last minute, as of the last copy."""
        now_s = time.monotonic()
        if now_s - self._read_s >= _COPY_AGE_S_MAX:
            self._copy(now_s)
        return self._sums.get(key, 0)

    def _copy(self, now_s: float) -> None:
        self._read_s = now_s
        *lines, self._rest = (self._rest + self._read.read()).split(b"\n")
        for line in lines:
            at, tenant, model, amount = line.decode().split()
            self._count(float(at), (tenant, model), int(amount))
        while self._entries and self._entries[0][0] < now_s - _WINDOW_S:
            _, key, settled = self._entries.popleft()
            self._sums[key] -= settled

    def _count(self, at_s: float, key: BucketKey, amount: int) -> None:
        self._entries.append((at_s, key, amount))
        self._sums[key] = self._sums.get(key, 0) + amount


class CountAfterHolds(Holds):
    """Buckets that never run dry, behind a check of the shared counter."""

    def __init__(self) -> None:
        super().__init__()
        self._counter = SharedCounter(Path(os.environ[COUNTER]))
        self._quotas: dict[BucketKey, int] = {}
        self._keys: dict[int, BucketKey] = {}

    def apply(self, leases: Mapping[BucketKey, LeaseTerms], **when: Any) -> None:
        """Takes the quotas from the leases and leaves the rates alone."""
        self._quotas |= {key: terms.quota_milli_mu_per_minute for key, terms in leases.items()}
        unlimited = LeaseTerms(_UNLIMITED, _UNLIMITED, _UNLIMITED)
        super().apply(dict.fromkeys(leases, unlimited), **when)

    def hold(self, key: BucketKey, amount_milli_mu: int, now_ns: int, **how: Any) -> Hold | Refused:
        """Admits while the counter is below the quota."""
        if self._counter.used(key) >= self._quotas.get(key, 0):
            return Refused(Refusal.USED_UP, _RETRY_S)
        answer = super().hold(key, amount_milli_mu, now_ns, **how)
        if isinstance(answer, Hold):
            self._keys[id(answer)] = key
        return answer

    def settle(self, hold: Hold, cost_milli_mu: int, now_ns: int) -> None:
        """Settles, and only now counts."""
        super().settle(hold, cost_milli_mu, now_ns)
        self._counter.add(self._keys.pop(id(hold)), cost_milli_mu)


class MaxTokensPricing(Pricing):
    """Prices every request as if it ran to max_tokens."""

    def estimate(self, *args: Any, **request: Any) -> Price:
        """See Pricing."""
        return super().estimate(*args, **(request | {"runs_to_max": True}))


def main() -> int:
    """Runs a router with the rule named first on the command line."""
    rule = sys.argv.pop(1)
    if rule not in RULES:
        sys.stderr.write(f"{rule!r} is no rule; known: {', '.join(RULES)}\n")
        return 2
    replaced = {"Holds": CountAfterHolds} if rule == "count_after" else {"Pricing": MaxTokensPricing}
    for name, stand_in in replaced.items():
        setattr(router, name, stand_in)
    return run_service(router.SERVICE, RouterConfig, wiring.serve)


if __name__ == "__main__":
    sys.exit(main())
