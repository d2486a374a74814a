"""Fairlead's client SDK."""
