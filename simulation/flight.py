"""One request on its way, and the tenant it belongs to: what the actors of a simulation hand to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.shard_map import shard_key
from data_plane.router.core.holds import BucketKey, Hold
from data_plane.router.core.loads import Dispatch
from data_plane.router.core.pricing import Price
from engines.agent.core.queue import Priority, Ticket
from fairlead.errors import Reason
from simulation.books import TenantBook
from simulation.kernel import NS_PER_S
from simulation.scenario import TenantSpec
from simulation.sessions import Conversation

if TYPE_CHECKING:
    from simulation.replica import Replica


class Tenant:
    """A tenant of one model while it is simulated.

    Attributes:
        id: Its name.
        model_id: What it uses.
        bucket: Its key in every router's holds.
        spec: Its part of the scenario.
        book: What became of its requests.
        priority: Of its requests.
        batch: Whether its requests wait rather than be refused.
        deadline_ns: Longest life of a request.
        patience_ns: Longest wait for a first token; 0 means no limit.
    """

    __slots__ = ("batch", "book", "bucket", "deadline_ns", "id", "model_id", "patience_ns", "priority", "spec")

    def __init__(self, spec: TenantSpec, book: TenantBook) -> None:
        self.id = spec.id
        self.model_id = spec.model
        self.bucket: BucketKey = (spec.id, spec.model)
        self.spec = spec
        self.book = book
        self.batch = spec.priority == "batch"
        self.priority = Priority.BATCH if self.batch else Priority.INTERACTIVE
        self.deadline_ns = round(spec.deadline_s * NS_PER_S)
        self.patience_ns = round(spec.patience_s * NS_PER_S)


class Flight:
    """One request at one router, from its arrival to its one end.

    Attributes:
        number: Unique in the run.
        tenant: Whose.
        input_tokens: Its prompt.
        output_tokens: What it will produce.
        prefix: Ids of its prompt's leading blocks.
        conversation: Says what comes after it, where it is a turn of a session.
        session_id: What it says of its session.
        shard_key: Where it lies in its model's key space.
        tries: How often its client was refused before.
        prompt_bytes: Of its text.
        max_tokens: What it asks for at most.
        arrived_ns: When.
        price: The router's estimate.
        prefill_milli_mu: What of it the prompt costs beyond the cache of the replica where it is.
        failure: Why the replica before did not do, if there was one.
        hold: What it holds of its quota.
        weight: Its tenant's weight where requests wait: the quota when it was admitted, mMU per minute.
        covered_tokens: Output tokens its hold stands for.
        dispatch: Its entry in the router's view of the replica.
        replica: Where it is.
        key: Its name at that replica; a new one for every attempt.
        returned: It was admitted before, and found every replica full.
        attempts: Replicas it was sent to.
        round_attempts: Those since it was admitted last.
        started_attempts: Those in all that may have begun to work on it.
        excluded: Replicas that failed it since it was admitted last, and those in `full`.
        full: Replicas that were known to be full when it was admitted; batch only.
        first_ns: When its first token was seen; 0 before.
        delivered: Tokens it has produced as far as anybody has looked.
        cached: Prompt tokens found in a prefix cache.
        ended: Whether it has had its end.
    """

    __slots__ = (
        "arrived_ns",
        "attempts",
        "cached",
        "conversation",
        "covered_tokens",
        "delivered",
        "dispatch",
        "ended",
        "excluded",
        "failure",
        "first_ns",
        "full",
        "hold",
        "input_tokens",
        "key",
        "max_tokens",
        "number",
        "output_tokens",
        "prefill_milli_mu",
        "prefix",
        "price",
        "prompt_bytes",
        "replica",
        "returned",
        "round_attempts",
        "session_id",
        "shard_key",
        "started_attempts",
        "tenant",
        "tries",
        "weight",
    )

    hold: Hold | None
    price: Price
    dispatch: Dispatch

    def __init__(
        self,
        number: int,
        tenant: Tenant,
        input_tokens: int,
        output_tokens: int,
        prefix: tuple[int, ...] = (),
        session_id: str = "",
        tries: int = 0,
        conversation: Conversation | None = None,
    ) -> None:
        self.number = number
        self.tenant = tenant
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.prefix = prefix
        self.session_id = session_id
        # As data_plane/router has it: the session, else the beginning of the prompt, else nothing in common.
        self.shard_key = shard_key(tenant.id, session_id or (f"{prefix[0]:016x}" if prefix else str(number)))
        self.tries = tries
        self.conversation = conversation
        self.prompt_bytes = max(1, int(input_tokens * tenant.spec.bytes_per_token))
        self.max_tokens = max(tenant.spec.max_tokens, output_tokens)
        self.arrived_ns = 0
        self.hold = None
        self.weight = 0
        self.covered_tokens = 0
        self.prefill_milli_mu = 0
        self.failure: Reason | None = None
        self.replica: Replica | None = None
        self.key = ""
        self.returned = False
        self.attempts = 0
        self.round_attempts = 0
        self.started_attempts = 0
        self.excluded: tuple[str, ...] = ()
        self.full: tuple[str, ...] = ()
        self.first_ns = 0
        self.delivered = 0
        self.cached = 0
        self.ended = False

    @property
    def deadline_ns(self) -> int:
        """When it is given up."""
        return self.arrived_ns + self.tenant.deadline_ns

    def ticket(self, kv_tokens: int, turn_s: float) -> Ticket:
        """What an agent's queue gets of this attempt.

        Args:
            kv_tokens: The agent's estimate of prompt and output.
            turn_s: Its turn among those of its tenant.
        """
        cost = self.price.cost
        return Ticket(
            self.key,
            self.tenant.priority,
            kv_tokens,
            self.tenant.id,
            self.weight,
            self.prefill_milli_mu,
            cost.decode_milli_mu,
            turn_s,
        )
