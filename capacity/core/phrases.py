"""How rates, counts and failure domains are said to people."""

from __future__ import annotations

from capacity.core.values import FailureDomain, Headroom
from model_units.units import MILLI_PER_MODEL_UNIT


def amount(rate: int) -> str:
    """A rate in MU/min, exactly: "1,234.5 MU/min"."""
    whole, part = divmod(abs(rate), MILLI_PER_MODEL_UNIT)
    sign = "-" if rate < 0 else ""
    return f"{sign}{whole:,}.{part:03}".rstrip("0").rstrip(".") + " MU/min"


def count(number: int, thing: str) -> str:
    """A number of things: "1 replica", "2 replicas"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def fleet(replicas_ready: int, target_utilization_ppm: int) -> str:
    """What live capacity is made of: "4 ready replicas at 80 % target utilisation"."""
    return f"{count(replicas_ready, 'ready replica')} at {target_utilization_ppm / 10_000:g} % target utilisation"


def domain(largest: FailureDomain) -> str:
    """A failure domain with its size: "host h1 (2 replicas, 160 MU/min)"."""
    members = "" if largest.kind == Headroom.REPLICA else f"{count(largest.replicas, 'replica')}, "
    return f"{largest.kind.name.lower()} {largest.name} ({members}{amount(largest.capacity)})"
