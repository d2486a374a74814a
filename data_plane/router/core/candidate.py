"""A replica as the policies see it: what is believed of its health, and what it has to do."""

from __future__ import annotations

import enum
import hashlib
from typing import Final

from model_units.units import REPLICA_CAPACITY

DECODE_WEIGHT: Final = 0.3
"""How much running decode delays a prefill. Source: simulation of chunked prefill on recorded traces."""

QUEUED_DECODE_WEIGHT: Final = 0.3
"""How much decode that still waits in the agent delays a prefill: as much as running decode, which it will be."""

STALL_WEIGHT: Final = 0.2
"""How much a prompt's own prefill counts once more for each request that is there already: it holds up their decode,
and the less it meets, the better for all. Source: simulation of chunked prefill on recorded traces."""

UNSEEN_WEIGHT: Final = 3
"""How often a dispatch that no report has seen counts once more in the score: other routers, which looked at the same
reports, have sent there as well, and nobody sees that yet. Source: simulation of a mix of recorded traces on 7 replicas
with two routers, 450 s, p95 time to first token of two seeds: with reports 5 s old 3.16 and 2.56 s (weights of 2 and 1
3.63 and 2.83, 3.83 and 3.38; of 4 as with 3; without it 4.42 and 3.86), and with fresh ones 2.34 against 2.51 s."""

CAPACITY_MILLI_MU_PER_MINUTE: Final = int(REPLICA_CAPACITY)
"""Capacity of a replica that names none. Source: the definition of a model unit."""

SECONDS_PER_MINUTE: Final = 60.0


class Health(enum.Enum):
    """What the router believes of a replica."""

    READY = "ready"
    """Takes requests."""
    DOUBTFUL = "doubtful"
    """Says it is unhealthy, or does not answer. Used only in a panic."""
    CLOSED = "closed"
    """Starting or draining on purpose. Never used."""


class Candidate:
    """A replica as a policy sees it: kept current in place, because every request weighs all of them.

    Args:
        replica_id: Unique.
        hash64: A fixed hash of the id.
        health: What the router believes of it.
        capacity_milli_mu_per_minute: What it serves; 0 and less counts as the definition's 100,000.
        pending_prefill_milli_mu: Prefill that waits there, this router's newest dispatches included, 0 or more.
        decode_milli_mu: Decode left there, likewise.
        queued_decode_milli_mu: Decode of requests that wait in the agent, likewise.
        requests: Requests that wait or run there, as far as this router knows, 0 or more.

    Attributes:
        phase: The hash as a fraction of 2^64, 0 to 1.
        load_minutes: What delays a prefill there, in minutes of its capacity, with a guess at what others have sent.
        minutes_per_milli_mu: One over the capacity.
        own_minutes_per_milli_mu: What a prompt of 1 mMU adds there, the requests that it holds up included.
        aged_ns: When its load was last brought up to date.
        told: What is remembered of it when it is weighed: id, pending prefill, decode, capacity, queued decode.
        in_flight: This router's requests on it.
        kv_used_tokens: KV cache in use by its last report.
        kv_capacity_tokens: KV cache of its engine; 0 where it does not tell.
        cache_bit: Its bit in the prefix index of its model; 0 where it has no prefix cache.
    """

    __slots__ = (
        "aged_ns",
        "cache_bit",
        "capacity_milli_mu_per_minute",
        "decode_milli_mu",
        "health",
        "in_flight",
        "kv_capacity_tokens",
        "kv_used_tokens",
        "load_minutes",
        "minutes_per_milli_mu",
        "own_minutes_per_milli_mu",
        "pending_prefill_milli_mu",
        "phase",
        "queued_decode_milli_mu",
        "replica_id",
        "requests",
        "told",
    )

    def __init__(
        self,
        replica_id: str,
        hash64: int,
        health: Health,
        capacity_milli_mu_per_minute: int,
        pending_prefill_milli_mu: int,
        decode_milli_mu: int,
        queued_decode_milli_mu: int = 0,
        requests: int = 0,
    ) -> None:
        self.replica_id = replica_id
        self.phase = hash64 / 2.0**64
        self.health = health
        self.in_flight = 0
        self.kv_used_tokens = self.kv_capacity_tokens = 0
        self.cache_bit = 0
        self.aged_ns = 0
        self.pending_prefill_milli_mu = pending_prefill_milli_mu
        self.decode_milli_mu = decode_milli_mu
        self.queued_decode_milli_mu = queued_decode_milli_mu
        self.requests = requests
        self.serve(capacity_milli_mu_per_minute)

    def serve(self, capacity_milli_mu_per_minute: int) -> None:
        """Sets the capacity; 0 and less counts as the definition's."""
        known = capacity_milli_mu_per_minute > 0
        self.capacity_milli_mu_per_minute = capacity_milli_mu_per_minute if known else CAPACITY_MILLI_MU_PER_MINUTE
        self.minutes_per_milli_mu = 1.0 / self.capacity_milli_mu_per_minute
        self.carry(self.pending_prefill_milli_mu, self.decode_milli_mu, self.queued_decode_milli_mu, self.requests)

    def age(self, now_ns: int) -> None:
        """Brings the load up to now."""
        self.aged_ns = now_ns

    def carry(
        self,
        pending_prefill_milli_mu: int,
        decode_milli_mu: int,
        queued_decode_milli_mu: int = 0,
        requests: int = 0,
        unseen_prefill_milli_mu: int = 0,
        unseen_requests: int = 0,
    ) -> None:
        """Sets the load, all parts 0 or more; of pending prefill and requests these are in no report yet."""
        self.pending_prefill_milli_mu = pending_prefill_milli_mu
        self.decode_milli_mu = decode_milli_mu
        self.queued_decode_milli_mu = queued_decode_milli_mu
        self.requests = requests
        load = pending_prefill_milli_mu + DECODE_WEIGHT * decode_milli_mu
        if queued_decode_milli_mu:
            load += QUEUED_DECODE_WEIGHT * queued_decode_milli_mu
        if unseen_requests:
            load += UNSEEN_WEIGHT * unseen_prefill_milli_mu
            requests += UNSEEN_WEIGHT * unseen_requests
        minutes = self.minutes_per_milli_mu
        self.load_minutes = load * minutes
        self.own_minutes_per_milli_mu = (1.0 + STALL_WEIGHT * requests) * minutes
        self.told = (
            self.replica_id,
            pending_prefill_milli_mu,
            decode_milli_mu,
            self.capacity_milli_mu_per_minute,
            queued_decode_milli_mu,
        )


def hash64(text: str) -> int:
    """A fixed 64-bit hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
