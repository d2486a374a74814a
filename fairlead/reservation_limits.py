"""What a reservation may hold: the ranges and defaults of admin.Reservation, for those who check, read or write one."""

from __future__ import annotations

from typing import Final

RATE_MAX_MILLI_MU_PER_MINUTE: Final = 10**12
"""The most of any rate: ten million replicas, far above any fleet, far below 64 bits even when summed over a million
tenants."""

TIER_MAX: Final = 9
"""The tier that is served last in a shortfall; 1 is served first."""

TIER_DEFAULT: Final = 5
"""What tier 0 means. Source: admin.proto."""

WEIGHT_MAX: Final = 1_000
"""The most weight among equals; 1 is the least."""

WEIGHT_DEFAULT: Final = 1
"""What weight 0 means. Source: admin.proto."""
