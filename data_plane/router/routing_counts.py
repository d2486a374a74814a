"""What routing counts, by model, for metrics."""

from __future__ import annotations

from data_plane.router.core.policies.policy import Pick


class ModelCounts:
    """What routing counts of one model.

    Attributes:
        picks: Picks by policy.
        sticky: Picks of a replica for its cache or session.
        panic: Picks that ignored health.
        prompt_tokens: Prompt tokens, estimated, of all picks.
        cached_tokens: Those of them expected in the replica's cache.
        waits: Requests that waited for a replica with room.
        waited_ns: How long, together.
        too_late: Requests refused because none could answer before their deadline.
    """

    __slots__ = ("cached_tokens", "panic", "picks", "prompt_tokens", "sticky", "too_late", "waited_ns", "waits")

    def __init__(self) -> None:
        self.picks: dict[str, int] = {}
        self.sticky = self.panic = self.prompt_tokens = self.cached_tokens = 0
        self.waits = self.waited_ns = self.too_late = 0

    def picked(self, pick: Pick, prompt_tokens: int) -> None:
        """Counts a pick.

        Args:
            pick: The pick.
            prompt_tokens: Of the request, estimated.
        """
        policy = pick.policy
        self.picks[policy] = self.picks.get(policy, 0) + 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += pick.cached_tokens
        self.sticky += pick.sticky
        self.panic += pick.panic


class RoutingCounts:
    """See the module.

    Attributes:
        by_model: What was counted, by model; a model is there once a replica of it was asked for.
    """

    def __init__(self) -> None:
        self.by_model: dict[str, ModelCounts] = {}

    def of(self, model_id: str) -> ModelCounts:
        """The counts of a model."""
        counts = self.by_model.get(model_id)
        if counts is None:
            counts = self.by_model[model_id] = ModelCounts()
        return counts
