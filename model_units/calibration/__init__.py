"""Calibration: which load to put on a replica next, and what all of them together say it costs."""
