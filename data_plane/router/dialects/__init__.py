"""Upstreams past the agent: the router speaks to engines in their own language."""
