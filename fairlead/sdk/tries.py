"""The tries of one call: where each goes, and whether there is a next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from fairlead.errors import FairleadError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2, ticket_pb2
from fairlead.sdk.addresses import AddressBook
from fairlead.sdk.retries import RetryPolicy, retry_delay
from fairlead.sdk.tracing import CallSpan
from fairlead.sdk.transport import Method, Outgoing, Request
from fairlead.sdk.wording import worded_for_caller

_REASONS_OF_ONE_ROUTER = frozenset({Reason.UNSPECIFIED, Reason.NOT_READY, Reason.SHUTTING_DOWN})
"""Where UNAVAILABLE speaks of the router itself: another one can do better. NO_REPLICA is the same everywhere."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all tries of one call have in common."""

    method: Method
    """Method of InferenceService."""
    request: Request
    """The message, the same for every try."""
    metadata: tuple[tuple[str, str], ...]
    """Authorization and trace context."""
    deadline_s: float | None
    """Seconds for all tries together, as the caller gave it."""
    ends_s: float | None
    """Monotonic time of the deadline, seconds."""


class Tries:
    """The tries of one call: counts them, picks their addresses, decides whether there is a next one."""

    def __init__(
        self,
        book: AddressBook,
        policy: RetryPolicy,
        span: CallSpan,
        now_s: Callable[[], float],
        draw: Callable[[], float],
        plan: Plan,
    ) -> None:
        self._book = book
        self._policy = policy
        self._span = span
        self._now_s = now_s
        self._draw = draw
        self._plan = plan
        self._address = ""
        self.attempts = 0
        """Tries made so far."""

    def next(self) -> Outgoing:
        """The next try, ready to be sent."""
        now_s = self._now_s()
        self._address = self._book.pick(now_s)
        self.attempts += 1
        self._span.sent_to(self._address)
        plan = self._plan
        timeout_s = None if plan.ends_s is None else max(plan.ends_s - now_s, 0.0)
        return Outgoing(self._address, plan.method, plan.request, plan.metadata, timeout_s)

    def at_replica(
        self, address: str, request: ticket_pb2.RedeemRequest, trace: tuple[tuple[str, str], ...]
    ) -> Outgoing:
        """The current try, to be sent on to a replica. The API key stays here.

        Args:
            address: host:port of the replica.
            request: The ticket, and what it is for.
            trace: Trace context.
        """
        self._address = address
        self._span.sent_to(address)
        ends_s = self._plan.ends_s
        timeout_s = None if ends_s is None else max(ends_s - self._now_s(), 0.0)
        return Outgoing(address, "Redeem", request, trace, timeout_s)

    def succeeded(self) -> None:
        """The current try was answered."""
        self._book.report_success(self._address)

    def failed(self, error: FairleadError) -> float:
        """Decides what follows a failed try.

        Returns:
            Seconds to wait before the next try.

        Raises:
            FairleadError: There is none: `error`, worded for the caller.
        """
        now_s = self._now_s()
        of_this_router = isinstance(error, UnavailableError) and error.reason in _REASONS_OF_ONE_ROUTER
        if of_this_router:
            self._book.report_failure(self._address, now_s)
        delay_s = retry_delay(
            self._policy,
            error,
            attempts=self.attempts,
            elsewhere=of_this_router and self._book.has_fresh(now_s),
            left_s=None if self._plan.ends_s is None else self._plan.ends_s - now_s,
            jitter=self._draw(),
        )
        if delay_s is None:
            self.broken(error)
        self._span.retried(error, self.attempts, delay_s)
        return delay_s

    def broken(self, error: FairleadError) -> NoReturn:
        """Raises `error`, worded for the caller where it was grpcio's own and not Fairlead's."""
        worded = worded_for_caller(error, self._address, self._plan.deadline_s)
        if isinstance(self._plan.request, inference_pb2.GenerateRequest):
            worded.metadata.setdefault("request_id", self._plan.request.request_id)
        worded.metadata.setdefault("attempts", str(self.attempts))
        raise worded from None
