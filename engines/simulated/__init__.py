"""A simulated engine: a continuously batching replica in real time, without a GPU."""
