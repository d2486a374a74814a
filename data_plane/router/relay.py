"""One admitted request and what its attempts leave behind."""

from __future__ import annotations

from typing import Final

from opentelemetry.trace import Span

from data_plane.relay.grpc import pieces
from data_plane.router.admission import Order
from data_plane.router.attempt import Attempt, Client
from data_plane.router.exchange import Receipt
from data_plane.router.routing import Chosen, Route
from data_plane.router.tracing import RequestTrace
from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2 as pb

# Looking a number up on the module and the enum costs more than comparing it.
_BATCH: Final = pb.PRIORITY_BATCH


class Requester(Client):
    """Whose request it is."""

    def attempt_ended(self, failure: Exception | None) -> None:
        """The attempt that ran is over, and written down: with a whole answer, or by what is said."""
        raise NotImplementedError


class Relay:
    """One admitted request and what its attempts leave behind.

    Args:
        order: What to run.
        receipt: Learns the replica.
        trace: Parent of the attempts' spans.
        client: Who gets the answer.
        route: Where it may go.
        kept: Where delivered pieces are kept, where the request may be continued or repeated; None where it cannot.

    Attributes:
        batch: It is one that waits rather than be refused.
        attempt: The one that runs, or None.
        chosen: The replica it runs on, or None.
        span: Of the attempt that runs, where it is recorded.
        failure: What the last attempt of this round failed with.
        lost: Replicas that were lost while they ran it, in all rounds.
        excluded: Replicas that failed it in this round.
        full: Replicas that batch need not ask in this round.
        attempts: Attempts in this round.
        started_attempts: Attempts that may have cost work, in all rounds.
        cleared: It was found not to be quarantined when it was sent; if it was before, this is its one try.
    """

    __slots__ = (
        "attempt",
        "attempts",
        "batch",
        "chosen",
        "cleared",
        "client",
        "excluded",
        "failure",
        "full",
        "kept",
        "lost",
        "order",
        "receipt",
        "route",
        "span",
        "started_attempts",
        "trace",
    )

    def __init__(
        self,
        order: Order,
        receipt: Receipt,
        trace: RequestTrace,
        client: Requester,
        route: Route,
        kept: list[bytes] | None,
    ) -> None:
        self.order = order
        self.receipt = receipt
        self.trace = trace
        self.client = client
        self.route = route
        self.kept = kept
        self.batch = order.checked.priority == _BATCH
        self.attempt: Attempt | None = None
        self.chosen: Chosen | None = None
        self.span: Span | None = None
        self.failure: FairleadError | None = None
        self.lost: list[str] = []
        self.excluded: set[str] = set()
        self.full: set[str] = set()
        self.attempts = self.started_attempts = 0
        self.cleared = False

    def text(self) -> bytes:
        """What was delivered, of a request that is kept."""
        return b"".join(map(pieces.text_of, self.kept or ()))
