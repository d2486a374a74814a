"""The load of the fault tests: a greedy tenant that always wants more than its quota, a steady one well within it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.lab import BURST_WINDOW_S, Lab
from tests.faults.load import Stream
from tests.faults.tenants import GREEDY, QUOTAS, STEADY

GREEDY_RATE = QUOTAS[GREEDY][1]
GREEDY_RESERVED = QUOTAS[GREEDY][0]
BURST = GREEDY_RATE * BURST_WINDOW_S / 60
# Requests per second over all routers: about 2.5 times the greedy quota, about a quarter of the steady one.
GREEDY_PER_S = 36.0
STEADY_PER_S = 2.4


def both(lab: Lab, *, cancel_share: float = 0.05, routers: Sequence[str] = ()) -> list[Stream]:
    """Both tenants on every router.

    Args:
        lab: Where.
        cancel_share: Of the greedy tenant's answers.
        routers: Only on these; all when left out.
    """
    chosen = [router for router in lab.routers if not routers or router.name in routers]
    streams = []
    for router in chosen:
        greedy_per_s, steady_per_s = GREEDY_PER_S / len(chosen), STEADY_PER_S / len(chosen)
        streams += [
            Stream(GREEDY, router.name, router.grpc_address, greedy_per_s, cancel_share),
            Stream(STEADY, router.name, router.grpc_address, steady_per_s),
        ]
    return streams
