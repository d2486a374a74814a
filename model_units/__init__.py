"""Model units: what a request costs. Pure: no I/O but reading the built-in profiles, no clock, no randomness."""
