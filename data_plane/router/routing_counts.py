"""What routing counts, by model, for metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from data_plane.router.core.policies.policy import Pick


@dataclass
class RoutingCounts:
    """See the module.

    Attributes:
        picks: Picks by (model, policy).
        sticky: Picks of a replica for its cache or session.
        panic: Picks that ignored health.
        prompt_tokens: Prompt tokens, estimated, of all picks.
        cached_tokens: Those of them expected in the replica's cache.
        waits: Requests that waited for a replica with room.
        waited_ns: How long, together.
        too_late: Requests refused because none could answer before their deadline.
    """

    picks: Counter[tuple[str, str]] = field(default_factory=Counter)
    sticky: Counter[str] = field(default_factory=Counter)
    panic: Counter[str] = field(default_factory=Counter)
    prompt_tokens: Counter[str] = field(default_factory=Counter)
    cached_tokens: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    waited_ns: Counter[str] = field(default_factory=Counter)
    too_late: Counter[str] = field(default_factory=Counter)

    def picked(self, model_id: str, pick: Pick, prompt_tokens: int) -> None:
        """Counts a pick.

        Args:
            model_id: Of which model.
            pick: The pick.
            prompt_tokens: Of the request, estimated.
        """
        if model_id not in self.prompt_tokens:  # what has not happened yet is 0, not absent
            self.sticky[model_id] = self.panic[model_id] = self.cached_tokens[model_id] = 0
        self.picks[model_id, pick.policy] += 1
        self.prompt_tokens[model_id] += prompt_tokens
        if pick.sticky:
            self.sticky[model_id] += 1
        if pick.panic:
            self.panic[model_id] += 1
        if pick.cached_tokens:
            self.cached_tokens[model_id] += pick.cached_tokens
