"""Pure decisions of the rate limiter: no I/O, no clock, no randomness."""
