"""What a router decided about a request, as frozen values: the result of `explain`."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from fairlead.inference.v1 import decision_pb2, inference_pb2
from fairlead.sdk.results import Usage, usage_from


class Outcome(enum.StrEnum):
    """How a request ended."""

    IN_FLIGHT = "in_flight"
    """It has not."""
    COMPLETED = "completed"
    """Answered to its end."""
    FAILED = "failed"
    """Admitted, then ended by an error."""
    REFUSED = "refused"
    """Not admitted."""
    CANCELLED = "cancelled"
    """The client went away or cancelled."""


_OUTCOMES = {
    decision_pb2.OUTCOME_COMPLETED: Outcome.COMPLETED,
    decision_pb2.OUTCOME_FAILED: Outcome.FAILED,
    decision_pb2.OUTCOME_REFUSED: Outcome.REFUSED,
    decision_pb2.OUTCOME_CANCELLED: Outcome.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class CandidateScore:
    """One replica as it was weighed."""

    replica_id: str
    """The replica."""
    score: float
    """The lowest wins: minutes of the replica's time that the request would wait for and bring."""
    pending_prefill_milli_mu: int
    """Prefill that waited there, milli-MU."""
    decode_milli_mu: int
    """Decode left there, milli-MU."""
    capacity_milli_mu_per_minute: int
    """Its capacity, milli-MU per minute."""
    health: str
    """ "ready", "doubtful" or "closed"."""
    queued_decode_milli_mu: int = 0
    """Decode of requests that waited there, milli-MU."""
    cached_tokens: int = 0
    """Prompt tokens of this request expected in its prefix cache."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try on one replica."""

    replica_id: str
    """The replica."""
    start_s: float
    """From the arrival of the request to the pick, seconds."""
    candidates: tuple[CandidateScore, ...]
    """The best candidates, lowest score first, the winner among them."""
    candidate_count: int
    """Replicas that were weighed in all."""
    sticky: bool
    """It was chosen for what its prefix cache holds, or as the session's own replica, over one with less to do."""
    panic: bool
    """Health was ignored because too few replicas had it."""
    failure_reason: str
    """Why it failed; empty where it did not."""
    first_token_s: float | None
    """From the pick to the first token, seconds; None where none came."""
    policy: str = ""
    """The rule that picked: "cost", "late_binding", "round_robin"..."""
    wait_s: float | None = None
    """How long the request waited in the router for a replica with room, seconds; None where it did not."""
    expected_first_token_s: float | None = None
    """Expected at the pick: until the first token, seconds; None where nothing was."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The tenant's quota at the router at the moment of the decision."""

    quota_milli_mu_per_minute: int
    """Over all routers."""
    rate_milli_mu_per_minute: int
    """This router's part of it in force."""
    burst_milli_mu: int
    """Most the router could save up."""
    level_milli_mu: int
    """What could have been held then, before this request; negative is debt."""
    held_milli_mu: int
    """Held by other requests in flight."""
    open_holds: int
    """How many."""
    expired: bool
    """The rate limiter had not been heard for a lease time: a safe rate was in force."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a router decided about one request."""

    request_id: str
    """Its id."""
    tenant_id: str
    """Who asked; empty where the key was not known."""
    model_id: str
    """On which model; empty where it was not known."""
    router_id: str
    """The router."""
    arrive_time: datetime
    """When it arrived, by the router's clock, UTC."""
    duration_s: float | None
    """From arrival to end, seconds; None while in flight."""
    outcome: Outcome
    """How it ended."""
    reason: str
    """Why, a reason of docs/errors.md; empty for completed requests."""
    message: str
    """What the client was told of it; empty for completed requests."""
    retry_delay_s: float | None
    """When trying again could succeed, seconds from the end; None where nothing was told."""
    priority: str
    """ "interactive", "batch" or "system"."""
    session_id: str
    """The session; empty for none."""
    profile_id: str
    """The cost profile it was priced by."""
    estimated_usage: Usage
    """Tokens as estimated at admission."""
    estimated_prefill_milli_mu: int
    """Prefill part of the estimate."""
    estimated_decode_milli_mu: int
    """Decode part of the estimate."""
    held_milli_mu: int
    """Held in the end, extensions included."""
    settled_usage: Usage
    """Tokens charged; zero for what was refused."""
    settled_prefill_milli_mu: int
    """Prefill part of what was charged."""
    settled_decode_milli_mu: int
    """Decode part of what was charged."""
    bucket: Bucket | None
    """The quota it was admitted from or refused by; None where the request did not get so far."""
    wait_s: float | None
    """How long it waited in the router, seconds: a batch request for quota, and one that reached no replica
    for one with room; None where it did not."""
    attempts: tuple[Attempt, ...]
    """Tries, in order."""
    replayed: bool
    """The answer was a repetition of an earlier one; nothing was charged."""

    @property
    def estimated_milli_mu(self) -> int:
        """The whole estimate."""
        return self.estimated_prefill_milli_mu + self.estimated_decode_milli_mu

    @property
    def settled_milli_mu(self) -> int:
        """The whole charge."""
        return self.settled_prefill_milli_mu + self.settled_decode_milli_mu


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that is remembered about a request."""

    decisions: tuple[Decision, ...]
    """At least one, newest first: an id may have been sent several times, and to several routers."""
    silent_routers: tuple[str, ...]
    """Routers that could not be asked; a decision may be missing because of them."""

    def text(self) -> str:
        """Explains the request to a person, in lines of plain text."""
        from fairlead.sdk.explaining import text_of  # it needs this module

        return text_of(self)


def explanation_from(messages: Iterable[decision_pb2.Decision], silent_routers: Iterable[str]) -> Explanation:
    """Translates what routers answered, each decision once, and puts the newest first.

    Args:
        messages: Decisions of any number of routers, one or more.
        silent_routers: Routers that did not answer.
    """
    # Routers that were asked themselves and through each other tell the same twice.
    each = {
        (decision.router_id, decision.tenant_id, decision.arrive_time): decision
        for decision in map(_decision, messages)
    }
    newest_first = sorted(each.values(), key=lambda decision: decision.arrive_time, reverse=True)
    return Explanation(tuple(newest_first), tuple(dict.fromkeys(silent_routers)))


def _decision(message: decision_pb2.Decision) -> Decision:
    return Decision(
        request_id=message.request_id,
        tenant_id=message.tenant_id,
        model_id=message.model_id,
        router_id=message.router_id,
        arrive_time=_time(message.arrive_time),
        duration_s=_seconds(message.duration) if message.HasField("duration") else None,
        outcome=_OUTCOMES.get(message.outcome, Outcome.IN_FLIGHT),
        reason=message.reason,
        message=message.message,
        retry_delay_s=_seconds(message.retry_delay) if message.HasField("retry_delay") else None,
        priority=_priority(message.priority),
        session_id=message.session_id,
        profile_id=message.profile_id,
        estimated_usage=usage_from(message.estimated_usage),
        estimated_prefill_milli_mu=message.estimated_prefill_milli_mu,
        estimated_decode_milli_mu=message.estimated_decode_milli_mu,
        held_milli_mu=message.held_milli_mu,
        settled_usage=usage_from(message.settled_usage),
        settled_prefill_milli_mu=message.settled_prefill_milli_mu,
        settled_decode_milli_mu=message.settled_decode_milli_mu,
        bucket=_bucket(message.bucket) if message.HasField("bucket") else None,
        wait_s=_seconds(message.wait) if message.HasField("wait") else None,
        attempts=tuple(map(_attempt, message.attempts)),
        replayed=message.replayed,
    )


def _attempt(message: decision_pb2.Attempt) -> Attempt:
    return Attempt(
        replica_id=message.replica_id,
        start_s=_seconds(message.start_offset),
        candidates=tuple(
            CandidateScore(
                replica_id=candidate.replica_id,
                score=candidate.score,
                pending_prefill_milli_mu=candidate.pending_prefill_milli_mu,
                decode_milli_mu=candidate.decode_milli_mu,
                capacity_milli_mu_per_minute=candidate.capacity_milli_mu_per_minute,
                health=candidate.health,
                queued_decode_milli_mu=candidate.queued_decode_milli_mu,
                cached_tokens=candidate.cached_tokens,
            )
            for candidate in message.candidates
        ),
        candidate_count=message.candidate_count,
        sticky=message.sticky,
        panic=message.panic,
        failure_reason=message.failure_reason,
        first_token_s=_seconds(message.first_token_offset) if message.HasField("first_token_offset") else None,
        policy=message.policy,
        wait_s=_seconds(message.wait) if message.HasField("wait") else None,
        expected_first_token_s=(
            _seconds(message.expected_first_token) if message.HasField("expected_first_token") else None
        ),
    )


def _bucket(message: decision_pb2.BucketState) -> Bucket:
    return Bucket(
        quota_milli_mu_per_minute=message.quota_milli_mu_per_minute,
        rate_milli_mu_per_minute=message.rate_milli_mu_per_minute,
        burst_milli_mu=message.burst_milli_mu,
        level_milli_mu=message.level_milli_mu,
        held_milli_mu=message.held_milli_mu,
        open_holds=message.open_holds,
        expired=message.expired,
    )


def _priority(value: inference_pb2.Priority.ValueType) -> str:
    known = inference_pb2.Priority.values()
    name = inference_pb2.Priority.Name(value) if value in known else ""
    return "interactive" if value == inference_pb2.PRIORITY_UNSPECIFIED else name.removeprefix("PRIORITY_").lower()


def _seconds(message: Duration) -> float:
    return message.ToNanoseconds() / 1e9


def _time(message: Timestamp) -> datetime:
    return datetime.fromtimestamp(message.seconds, UTC).replace(microsecond=message.nanos // 1000)
