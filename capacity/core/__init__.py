"""Pure decisions of the capacity allocator: no I/O, no clock, no randomness."""
