"""The platform on one machine: `make run`."""
