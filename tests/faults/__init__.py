"""Fault injection on real processes: the promises that hold while something dies, hangs, is cut off or runs full."""
