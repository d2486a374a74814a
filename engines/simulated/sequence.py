"""One request inside the step machine, kept without any work per token."""

from __future__ import annotations

from dataclasses import dataclass

from engines.simulated.kv_cache import Holding
from engines.simulated.work import Work


@dataclass(slots=True, eq=False)
class Sequence:
    """A request that waits, prefills or decodes. Only the machine changes it.

    Attributes:
        work: What was asked for.
        order: (-priority, arrival): lower goes first.
        target: Tokens to compute before the next token comes out of prefill.
        computed: Tokens computed; while it decodes, those at `join`.
        produced: Tokens that are out; while it decodes, those at `join`.
        cached: Prompt tokens found in the prefix cache when it first began; -1 before.
        join: The step after which it decodes; -1 while it does not.
        holding: Its part of the KV cache; None while it waits.
        gone: Finished or cancelled.
    """

    work: Work
    order: tuple[int, int]
    target: int
    computed: int = 0
    produced: int = 0
    cached: int = -1
    join: int = -1
    holding: Holding | None = None
    gone: bool = False

    def produced_by(self, step: int) -> int:
        """Tokens that are out after `step` steps of the machine."""
        return self.produced + (step - self.join if self.join >= 0 else 0)

    def ends_after(self, step: int) -> bool:
        """Whether its last token comes with this step."""
        return self.join >= 0 and step == self.join + self.work.output_tokens - self.produced
