"""Calibrations: asked for by administrators, carried out by the leader on one replica at a time."""
