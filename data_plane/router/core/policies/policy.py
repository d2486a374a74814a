"""What every policy is asked and what it answers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple, Protocol

from data_plane.router.core.candidate import SECONDS_PER_MINUTE, Candidate, Health
from data_plane.router.core.pool import Pool

WEIGHED_MAX: Final = 8
"""Most candidates of one pick that are remembered. Source: `Attempt.candidates` of decision.proto."""


class Ask(NamedTuple):
    """A request for which a replica is wanted. A tuple, because every attempt makes one.

    Attributes:
        prefill_milli_mu: Price of its whole prompt, mMU, 0 or more.
        decode_milli_mu: Price of its output, estimated, mMU, 0 or more.
        input_tokens: Tokens of its prompt, estimated, 0 or more.
        prefix_blocks: Names of its prompt's leading blocks (`model_units.prefix`), front first.
        block_tokens: Tokens of one such block, about; 0 means that the blocks are all of the prompt.
        session_id: Its session, or empty.
        request_id: Unique; decides between replicas that are alike where there is no session.
        tenant_id: Whose.
        excluded: Replicas that must not be picked: they failed it before, or are known to be full.
        weighed_max: How many of the best candidates the pick remembers, 0 or more.
        now_ns: Monotonic now.
    """

    prefill_milli_mu: int
    decode_milli_mu: int
    input_tokens: int
    prefix_blocks: tuple[int, ...] = ()
    block_tokens: float = 0.0
    session_id: str = ""
    request_id: str = ""
    tenant_id: str = ""
    excluded: Collection[str] = ()
    weighed_max: int = 0
    now_ns: int = 0

    def cached_tokens(self, blocks: int) -> int:
        """Prompt tokens in its first `blocks` blocks, at most all of the prompt."""
        if not blocks:
            return 0
        tokens = self.block_tokens or self.input_tokens / max(1, len(self.prefix_blocks))
        return min(self.input_tokens, int(blocks * tokens))

    def uncached_milli_mu(self, cached_tokens: int) -> int:
        """Price of the prompt without its first `cached_tokens`, in proportion."""
        if cached_tokens <= 0:
            return self.prefill_milli_mu
        left = max(0, self.input_tokens - cached_tokens)
        return self.prefill_milli_mu * left // max(1, self.input_tokens)


Rank = tuple[tuple[str, int, int, int, int], float, int, Health]
"""A candidate as it is remembered: what it told (`Candidate.told`), score, tokens in its cache, health."""

Weighed = tuple[str, float, int, int, int, Health, int, int]
"""A candidate as it was weighed: replica id, score (less is better), pending prefill, decode, capacity, health, queued
decode, tokens of the prompt in its cache."""


class Pick:
    """The choice.

    Attributes:
        replica_id: The replica.
        policy: The rule that chose, by its name.
        panic: Health was ignored because too few replicas have it.
        sticky: It holds more of the prompt's prefix than everybody does.
        uncached_prefill_milli_mu: What the prompt costs there beyond its cache, mMU.
        expected_first_token_s: Until the first token, as far as anybody knows, seconds.
        ranking: The best candidates, the winner first; as many as were asked for. See `weighed`.
        candidate_count: Replicas that were weighed in all.
        cached_tokens: Prompt tokens expected in its cache.
    """

    __slots__ = (
        "cached_tokens",
        "candidate_count",
        "expected_first_token_s",
        "panic",
        "policy",
        "ranking",
        "replica_id",
        "sticky",
        "uncached_prefill_milli_mu",
    )

    def __init__(
        self,
        replica_id: str,
        policy: str,
        panic: bool,
        sticky: bool,
        uncached_prefill_milli_mu: int,
        expected_first_token_s: float,
        ranking: tuple[Rank, ...],
        candidate_count: int,
        cached_tokens: int,
    ) -> None:
        self.replica_id = replica_id
        self.policy = policy
        self.panic = panic
        self.sticky = sticky
        self.uncached_prefill_milli_mu = uncached_prefill_milli_mu
        self.expected_first_token_s = expected_first_token_s
        self.ranking = ranking
        self.candidate_count = candidate_count
        self.cached_tokens = cached_tokens

    @property
    def weighed(self) -> tuple[Weighed, ...]:
        """The best candidates, the winner first, to be read."""
        return tuple(
            (replica_id, score, pending, decode, capacity, health, queued_decode, cached)
            for (replica_id, pending, decode, capacity, queued_decode), score, cached, health in self.ranking
        )


class Randomness(Protocol):
    """Where policies that draw get their random numbers from: a `random.Random`."""

    def randrange(self, stop: int, /) -> int:
        """A whole number from 0 to one less than `stop`."""
        ...


class Policy(Protocol):
    """A rule by which one router picks the replicas of one model."""

    @property
    def name(self) -> str:
        """As in `explain`, in scenarios and in metrics."""
        ...

    @property
    def waits_for_room(self) -> bool:
        """Whether a request waits in the router while no candidate `has_room`."""
        ...

    def pick(self, ask: Ask, pool: Pool) -> Pick | None:
        """Chooses a replica.

        Args:
            ask: The request.
            pool: The candidates of its workload.

        Returns:
            The choice, or None when nothing is eligible.
        """
        ...


ROOM_S: Final = 0.2
"""A replica has room while less than this much of its capacity waits as prefill there, so that it never runs dry before
the next request arrives. Source: simulation of late binding on recorded traces, where half a second was worse."""


def has_room(candidate: Candidate) -> bool:
    """Whether a request that waits in the router should go there now."""
    pending_s = candidate.pending_prefill_milli_mu * candidate.minutes_per_milli_mu * SECONDS_PER_MINUTE
    return pending_s < ROOM_S and not candidate.queued_decode_milli_mu


def expected_first_token_s(candidate: Candidate, uncached_prefill_milli_mu: int) -> float:
    """Until a request's first token: the prefill that waits there and its own, over the capacity, seconds."""
    pending = candidate.pending_prefill_milli_mu + uncached_prefill_milli_mu
    return pending * candidate.minutes_per_milli_mu * SECONDS_PER_MINUTE
