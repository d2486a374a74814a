"""Who uses the lab, and how much they may."""

from __future__ import annotations

MODEL = "sim-8b"
GREEDY, STEADY = "greedy", "steady"
KEYS = {GREEDY: "fl-greedygreedygree-secret", STEADY: "fl-steadysteadystea-secret"}
# Milli-MU per minute: (reserved, ceiling). The greedy one always wants more than its ceiling, the steady one a quarter
# of its reservation; three simulated replicas serve thirty times as much, so that nothing but quotas limits anybody.
QUOTAS = {GREEDY: (4_500, 9_000), STEADY: (6_000, 6_000)}
