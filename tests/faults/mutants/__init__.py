"""Builds with a bug switched on, to show that the checkers of the fault tests can fail.

Each module changes the product's code in its own process and then runs the service as it ships; the product itself has
no switch for a bug.
"""

from __future__ import annotations

import runpy


def run(module: str) -> None:
    """Becomes a service of the platform."""
    runpy.run_module(module, run_name="__main__", alter_sys=True)
