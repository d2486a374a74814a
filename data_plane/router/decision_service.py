"""Explains requests: who may ask about which, and how a receipt reads on the wire."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from common.clock import Clock
from common.decisions import KEPT_MAX
from common.platform_token import is_platform
from data_plane.router.admission import Admission
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.decisions import DecisionLog
from data_plane.router.core.holds import BucketView
from data_plane.router.exchange import Receipt, Try
from data_plane.router.metadata import authorization
from data_plane.router.peers import Peers
from fairlead.errors import InvalidArgumentError, NotFoundError
from fairlead.inference.v1 import decision_pb2 as pb
from fairlead.inference.v1 import decision_pb2_grpc, inference_pb2

ServicerContext = grpc.aio.ServicerContext[Any, Any]

DECISION_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["DecisionService"].full_name

_OUTCOMES = {
    None: pb.OUTCOME_UNSPECIFIED,
    Outcome.COMPLETED: pb.OUTCOME_COMPLETED,
    Outcome.FAILED: pb.OUTCOME_FAILED,
    Outcome.REFUSED: pb.OUTCOME_REFUSED,
    Outcome.CANCELLED: pb.OUTCOME_CANCELLED,
}


class Decisions:
    """Finds requests for those who may know of them, behind both front doors.

    Args:
        kept: The newest requests.
        admission: Knows keys.
        token: The platform's own, which opens every tenant's requests.
        clock: Monotonic time.
        router_id: This router.
        peers: The other routers, or None for none.
    """

    def __init__(
        self,
        kept: DecisionLog[Receipt],
        admission: Admission,
        token: str,
        clock: Clock,
        *,
        router_id: str,
        peers: Peers | None = None,
    ) -> None:
        self._kept = kept
        self._admission = admission
        self._token = token
        self._clock = clock
        self._router_id = router_id
        self._peers = peers

    async def explain(self, request: pb.GetDecisionRequest, authorization: str | None) -> pb.GetDecisionResponse:
        """As `find`, with what the other routers remember of a tenant's request; the platform asks each by itself."""
        if self._peers is None or is_platform(authorization, self._token):
            return self.find(request, authorization)
        try:
            own = list(self.find(request, authorization).decisions)
        except NotFoundError:
            own = []
        tenant_id = self._admission.authenticate(authorization).tenant_id
        whole = await self._peers.complete(request.request_id, tenant_id, own, self._kept.kept_max)
        return pb.GetDecisionResponse(decisions=whole.decisions, silent_router_ids=whole.silent_router_ids)

    def find(self, request: pb.GetDecisionRequest, authorization: str | None) -> pb.GetDecisionResponse:
        """Explains a request.

        Args:
            request: Which.
            authorization: The authorization header's value, or None.

        Raises:
            UnauthenticatedError: Neither a key nor the platform's token.
            PermissionDeniedError: The tenant is suspended.
            InvalidArgumentError: No id is given.
            NotFoundError: No such request is remembered, or it is another tenant's, which looks the same.
        """
        tenant_id: str | None = request.tenant_id or None
        if not is_platform(authorization, self._token):
            tenant_id = self._admission.authenticate(authorization).tenant_id
        if not request.request_id:
            raise InvalidArgumentError("request_id is required; every answer and error carries it", field="request_id")
        found = self._kept.find(request.request_id, tenant_id)
        if not found:
            raise NotFoundError(
                f"this router remembers no request {request.request_id[:128]!r} of yours: it may have been served by "
                "another router, or too long ago",
                metadata={KEPT_MAX: str(self._kept.kept_max)},
            )
        return pb.GetDecisionResponse(decisions=[self._decision(receipt) for receipt in found])

    def _decision(self, receipt: Receipt) -> pb.Decision:
        decision = pb.Decision(
            request_id=receipt.request_id,
            tenant_id=receipt.tenant_id,
            model_id=receipt.model_id,
            router_id=self._router_id,
            outcome=_OUTCOMES[receipt.outcome],
            reason=receipt.reason,
            message=receipt.message,
            priority=receipt.priority,
            session_id=receipt.session_id,
            profile_id=receipt.profile_id,
            held_milli_mu=receipt.held_milli_mu,
            attempts=[_attempt(each, receipt.arrive_ns) for each in receipt.tries],
            replayed=receipt.replayed,
        )
        decision.arrive_time.FromNanoseconds(receipt.arrive_wall_ns)
        if receipt.outcome is not None:
            decision.duration.CopyFrom(_duration(receipt.end_ns - receipt.arrive_ns))
        if receipt.retry_after_s is not None:
            decision.retry_delay.CopyFrom(_duration(round(receipt.retry_after_s * 1e9)))
        if receipt.wait_ns or receipt.room_wait_ns:
            decision.wait.CopyFrom(_duration(receipt.wait_ns + receipt.room_wait_ns))
        if receipt.bucket is not None:
            decision.bucket.CopyFrom(_bucket(receipt.bucket, receipt))
        _price(decision, receipt)
        return decision


class DecisionService(decision_pb2_grpc.DecisionServiceServicer):
    """See decision.proto.

    Args:
        decisions: What is known.
    """

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions

    async def GetDecision(self, request: pb.GetDecisionRequest, context: ServicerContext) -> pb.GetDecisionResponse:
        """See decision.proto."""
        return await self._decisions.explain(request, authorization(context))


def _price(decision: pb.Decision, receipt: Receipt) -> None:
    price, cost = receipt.price, receipt.cost
    if price is not None:
        decision.estimated_usage.CopyFrom(
            inference_pb2.Usage(input_tokens=price.input_tokens, output_tokens=price.output_tokens)
        )
        decision.estimated_prefill_milli_mu = price.cost.prefill_milli_mu
        decision.estimated_decode_milli_mu = price.cost.decode_milli_mu
    if cost is not None and receipt.usage is not None:
        counted = receipt.usage
        decision.settled_usage.CopyFrom(
            inference_pb2.Usage(
                input_tokens=counted.input_tokens,
                cached_input_tokens=counted.cached_input_tokens,
                output_tokens=counted.output_tokens,
            )
        )
        decision.settled_prefill_milli_mu = cost.prefill_milli_mu
        decision.settled_decode_milli_mu = cost.decode_milli_mu


def _bucket(view: BucketView, receipt: Receipt) -> pb.BucketState:
    """The bucket before the request took its own part out."""
    taken_milli_mu = receipt.estimated_milli_mu if receipt.admitted else 0
    return pb.BucketState(
        quota_milli_mu_per_minute=view.quota_milli_mu_per_minute,
        rate_milli_mu_per_minute=view.rate_milli_mu_per_minute,
        burst_milli_mu=view.burst_milli_mu,
        level_milli_mu=view.level_milli_mu + taken_milli_mu,
        held_milli_mu=view.held_milli_mu - taken_milli_mu,
        open_holds=view.open_holds - receipt.admitted,
        expired=view.expired,
    )


def _attempt(tried: Try, arrive_ns: int) -> pb.Attempt:
    choice = tried.choice
    attempt = pb.Attempt(
        replica_id=choice.replica_id,
        start_offset=_duration(tried.start_ns - arrive_ns),
        candidates=[
            pb.CandidateScore(
                replica_id=replica_id,
                score=score,
                pending_prefill_milli_mu=pending,
                decode_milli_mu=decode,
                capacity_milli_mu_per_minute=capacity,
                health=health.value,
                queued_decode_milli_mu=queued,
                cached_tokens=cached,
            )
            # The winner comes first and stays first among equals.
            for replica_id, score, pending, decode, capacity, health, queued, cached in sorted(
                choice.weighed, key=lambda each: each[1]
            )
        ],
        candidate_count=choice.candidate_count,
        sticky=choice.sticky,
        panic=choice.panic,
        failure_reason=tried.failure_reason,
        policy=choice.policy,
        expected_first_token=_duration(round(choice.expected_first_token_s * 1e9)),
    )
    if tried.wait_ns:
        attempt.wait.CopyFrom(_duration(tried.wait_ns))
    if tried.first_token_ns:
        attempt.first_token_offset.CopyFrom(_duration(tried.first_token_ns - tried.start_ns))
    return attempt


def _duration(nanoseconds: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(nanoseconds)
    return duration
