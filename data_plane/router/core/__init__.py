"""The router's decisions: pure, no I/O, no asyncio, no clock, no global randomness."""
