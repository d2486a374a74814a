"""Decisions of calibrations. Pure: what is known comes in as an argument."""
