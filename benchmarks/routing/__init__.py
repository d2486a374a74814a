"""make bench-routing: what routing and the sharder promise, measured in the simulator, live and on the clock."""
