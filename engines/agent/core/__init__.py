"""Decisions of the replica agent. Pure: time comes in as an argument, frozen values go out."""
