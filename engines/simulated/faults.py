"""Faults a simulated engine can be told to have, to prove that the platform notices and copes."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Faults:
    """What is broken; the default is nothing.

    Attributes:
        hang: Takes requests and never answers; the engine still says it is alive.
        freeze_after_tokens: Every stream stops after this many tokens; 0 means off.
        slow_factor: Every step takes this many times as long; 1 means off.
        crash_marker: The engine dies when a prompt contains this text; empty means off.
        garbage: Text is replaced by characters that are no text.
        out_of_memory: New requests fail.
    """

    hang: bool = False
    freeze_after_tokens: int = 0
    slow_factor: float = 1.0
    crash_marker: str = ""
    garbage: bool = False
    out_of_memory: bool = False

    def after_restart(self) -> Faults:
        """What a restart leaves: a prompt that kills engines kills the next one too, all else is healed."""
        return replace(Faults(), crash_marker=self.crash_marker)
