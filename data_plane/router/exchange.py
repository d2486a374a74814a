"""What goes into a request's life and what comes out of it, for both front doors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from data_plane.router.core.accounts import Outcome
from data_plane.router.core.holds import BucketView
from data_plane.router.core.keys import Caller
from data_plane.router.core.policies.policy import Pick
from data_plane.router.core.pricing import Price
from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.cost import Cost

TRIES_KEPT_MAX: Final = 16
"""Tries of one request that are remembered. A batch request that waits for room may have any number."""

# Looking a number up on the module and the enum costs more than comparing it.
_UNSPECIFIED: Final = pb.PRIORITY_UNSPECIFIED


class Call:
    """One incoming request.

    Args:
        request: What is asked, not checked yet.
        authorization: The authorization header's value, or None.
        deadline_ns: Monotonic end of the caller's patience, or None for the platform's ceiling.
        trace: The caller's traceparent and tracestate, as they came; empty for none.
        caller: Whose key it is, where that was checked already.
        raw: The request's own bytes, where it came as such.
    """

    __slots__ = ("authorization", "caller", "deadline_ns", "raw", "request", "trace")

    def __init__(
        self,
        request: pb.GenerateRequest,
        authorization: str | None,
        deadline_ns: int | None = None,
        trace: tuple[tuple[str, str], ...] = (),
        caller: Caller | None = None,
        raw: bytes = b"",
    ) -> None:
        self.request = request
        self.authorization = authorization
        self.deadline_ns = deadline_ns
        self.trace = trace
        self.caller = caller
        self.raw = raw


class Usage:
    """What the engine counted, tokens; see inference.v1.Usage."""

    __slots__ = ("cached_input_tokens", "input_tokens", "output_tokens")

    def __init__(self, input_tokens: int, cached_input_tokens: int, output_tokens: int) -> None:
        self.input_tokens = input_tokens
        self.cached_input_tokens = cached_input_tokens
        self.output_tokens = output_tokens


class Charge:
    """What a request cost, milli-MU; see inference.v1.Cost."""

    __slots__ = (
        "decode_milli_mu",
        "estimated_milli_mu",
        "prefill_milli_mu",
        "quota_left_milli_mu",
        "settled_milli_mu",
    )

    def __init__(
        self,
        estimated_milli_mu: int,
        settled_milli_mu: int,
        prefill_milli_mu: int,
        decode_milli_mu: int,
        quota_left_milli_mu: int,
    ) -> None:
        self.estimated_milli_mu = estimated_milli_mu
        self.settled_milli_mu = settled_milli_mu
        self.prefill_milli_mu = prefill_milli_mu
        self.decode_milli_mu = decode_milli_mu
        self.quota_left_milli_mu = quota_left_milli_mu


class Try:
    """One attempt on one replica.

    Args:
        choice: Why this replica.
        start_ns: Monotonic time of the choice.

    Attributes:
        first_token_ns: Monotonic time of its first token; 0 until then.
        failure_reason: Why it failed; empty where it did not.
        wait_ns: How long the request waited for a replica with room before it.
    """

    __slots__ = ("choice", "failure_reason", "first_token_ns", "start_ns", "wait_ns")

    def __init__(self, choice: Pick, start_ns: int) -> None:
        self.choice = choice
        self.start_ns = start_ns
        self.first_token_ns = self.wait_ns = 0
        self.failure_reason = ""


class Receipt:
    """What is known of a request so far; complete once it has ended, however it ended.

    It outlives the request in the decision log, so it never holds a prompt, an output or a key.

    Args:
        request_id: The client's id, or one the router drew.
        arrive_ns: Monotonic arrival; 0 before it ran.
        arrive_wall_ns: The same by the wall clock, for people.
        tenant_id: Who asked; empty until the key was checked.
        model_id: The model; empty until it was found.

    Attributes:
        priority: The scheduling class; unspecified until the request was checked.
        session_id: The session, or empty.
        profile_id: What it is priced by; empty until it was.
        price: The estimate, or None before it was priced.
        estimated_milli_mu: The estimate; held at admission.
        bucket: The tenant's bucket right after the decision to admit or refuse, or None where it did not get so far.
        admitted: The estimate was taken out of `bucket`.
        held_milli_mu: Held in the end, extensions included.
        wait_ns: How long a batch request waited for quota or a replica, in all.
        room_wait_ns: How long it waited in the router for a replica with room since its last try.
        attempts: Replicas tried, each as often as it was.
        tries: The newest of them, in order; at most TRIES_KEPT_MAX.
        replica_id: Who serves or served it; empty until a replica was picked.
        engine: What it runs, "engine/version/hardware"; empty until then.
        output_tokens: Delivered so far.
        usage: What was charged for, or None where nothing was.
        cost: What they cost, or None.
        quota: The tenant's bucket when it was last touched, or None.
        replayed: The answer came from the idempotency window and nothing was charged.
        outcome: How it ended, or None while it is in flight.
        end_ns: Monotonic end; 0 until then.
        reason: Why it ended so; empty for completed requests.
        message: What the client was told of that.
        retry_after_s: When to come back, as told, or None.
    """

    __slots__ = (
        "admitted",
        "arrive_ns",
        "arrive_wall_ns",
        "attempts",
        "bucket",
        "cost",
        "end_ns",
        "engine",
        "estimated_milli_mu",
        "held_milli_mu",
        "message",
        "model_id",
        "outcome",
        "output_tokens",
        "price",
        "priority",
        "profile_id",
        "quota",
        "reason",
        "replayed",
        "replica_id",
        "request_id",
        "retry_after_s",
        "room_wait_ns",
        "session_id",
        "tenant_id",
        "tries",
        "usage",
        "wait_ns",
    )

    def __init__(
        self, request_id: str, arrive_ns: int = 0, arrive_wall_ns: int = 0, tenant_id: str = "", model_id: str = ""
    ) -> None:
        self.request_id = request_id
        self.arrive_ns = arrive_ns
        self.arrive_wall_ns = arrive_wall_ns
        self.tenant_id = tenant_id
        self.model_id = model_id
        self.priority: pb.Priority.ValueType = _UNSPECIFIED
        self.session_id = self.profile_id = self.replica_id = self.engine = self.reason = self.message = ""
        self.price: Price | None = None
        self.estimated_milli_mu = self.held_milli_mu = self.wait_ns = self.room_wait_ns = self.end_ns = 0
        self.attempts = self.output_tokens = 0
        self.bucket: BucketView | None = None
        self.quota: BucketView | None = None
        self.admitted = self.replayed = False
        self.tries: list[Try] = []
        self.usage: Usage | None = None
        self.cost: Cost | None = None
        self.outcome: Outcome | None = None
        self.retry_after_s: float | None = None

    def tried(self, this: Try) -> None:
        """A replica is tried."""
        this.wait_ns, self.room_wait_ns = self.room_wait_ns, 0
        self.attempts += 1
        self.tries.append(this)
        if len(self.tries) > TRIES_KEPT_MAX:
            del self.tries[0]

    def gave_back(self, bucket: BucketView) -> None:
        """What was held went back, and the request waits again.

        Args:
            bucket: The tenant's bucket after that.
        """
        self.admitted, self.held_milli_mu = False, 0
        self.quota = self.bucket = bucket

    def end(self, outcome: Outcome, reason: str, now_ns: int, error: BaseException | None) -> None:
        """Writes down how it ended.

        Args:
            outcome: How.
            reason: Why; empty for completed requests.
            now_ns: Monotonic now.
            error: What ended it, or None.
        """
        self.outcome, self.reason, self.end_ns = outcome, reason, now_ns
        if isinstance(error, FairleadError):
            self.message, self.retry_after_s = error.message, error.retry_after_s

    @property
    def settled_milli_mu(self) -> int:
        """Charged; 0 until it ended."""
        return self.cost.total_milli_mu if self.cost is not None else 0

    @property
    def estimated_tokens(self) -> int:
        """Input and output tokens it was estimated for."""
        return self.price.input_tokens + self.price.output_tokens if self.price is not None else 0

    @property
    def quota_left_milli_mu(self) -> int:
        """What could be admitted now, 0 or more."""
        return max(0, self.quota.level_milli_mu) if self.quota else 0


@dataclass(frozen=True)
class Delta:
    """A piece of the answer.

    Attributes:
        text: New text; may be empty while a character is incomplete.
        output_tokens: New tokens.
    """

    text: str
    output_tokens: int


class Finished:
    """The end of an answer; nothing comes after it.

    Args:
        finish_reason: Why it ended.
        usage: The engine's counts.
        cost: The price.
    """

    __slots__ = ("cost", "finish_reason", "usage")

    def __init__(self, finish_reason: pb.FinishReason.ValueType, usage: Usage, cost: Charge) -> None:
        self.finish_reason = finish_reason
        self.usage = usage
        self.cost = cost


Event = Delta | Finished


class Sink(Protocol):
    """Where one request's answer goes. No call may raise; each may cancel the request."""

    def on_piece(self, piece: bytes) -> bool:
        """Text and tokens that are new to the client.

        Args:
            piece: See data_plane.relay.grpc.pieces.

        Returns:
            False where the client does not keep up. The piece was taken all the same, but the replica is held until
            `Exchange.resume`.
        """
        ...

    def on_finished(self, finished: Finished) -> None:
        """The answer is whole, and the request settled."""
        ...

    def on_failed(self, error: FairleadError) -> None:
        """It was refused or failed, and is settled."""
        ...
