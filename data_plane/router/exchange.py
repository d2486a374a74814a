"""What goes into a request's life and what comes out of it, for both front doors."""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry.context import Context

from data_plane.router.core.holds import BucketView
from fairlead.inference.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Call:
    """One incoming request.

    Attributes:
        request: What is asked, not checked yet.
        authorization: The authorization header's value, or None.
        deadline_ns: Monotonic end of the caller's patience, or None for the platform's ceiling.
        parent: Trace context of the caller.
    """

    request: pb.GenerateRequest
    authorization: str | None
    deadline_ns: int | None = None
    parent: Context = field(default_factory=Context)


@dataclass(slots=True)
class Receipt:
    """What is known of a request so far; complete once it has ended, however it ended.

    Attributes:
        request_id: The client's id, or one the router drew.
        tenant_id: Who asked; empty until the key was checked.
        model_id: The model; empty until it was found.
        replica_id: Who serves or served it; empty until a replica was picked.
        engine: What it runs, "engine/version/hardware"; empty until then.
        estimated_milli_mu: The estimate; held at admission.
        estimated_tokens: Input and output tokens it was estimated for.
        settled_milli_mu: Charged; 0 until it ended.
        output_tokens: Delivered so far.
        attempts: Replicas tried.
        quota: The tenant's bucket when it was last touched, or None.
        replayed: The answer came from the idempotency window and nothing was charged.
    """

    request_id: str
    tenant_id: str = ""
    model_id: str = ""
    replica_id: str = ""
    engine: str = ""
    estimated_milli_mu: int = 0
    estimated_tokens: int = 0
    settled_milli_mu: int = 0
    output_tokens: int = 0
    attempts: int = 0
    quota: BucketView | None = None
    replayed: bool = False

    @property
    def quota_left_milli_mu(self) -> int:
        """What could be admitted now, 0 or more."""
        return max(0, self.quota.level_milli_mu) if self.quota else 0


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer.

    Attributes:
        text: New text; may be empty while a character is incomplete.
        output_tokens: New tokens.
    """

    text: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer; nothing comes after it.

    Attributes:
        finish_reason: Why it ended.
        usage: The engine's counts.
        cost: The price.
    """

    finish_reason: pb.FinishReason.ValueType
    usage: pb.Usage
    cost: pb.Cost


Event = Delta | Finished
