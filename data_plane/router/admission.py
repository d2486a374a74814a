"""From a call to an admitted request: authenticate, check, price, hold."""

from __future__ import annotations

from typing import Final

from common.clock import Clock
from data_plane.router.batch_desk import BatchDesk
from data_plane.router.core import validate
from data_plane.router.core.batch_gate import may_wait
from data_plane.router.core.demand import Demand
from data_plane.router.core.holds import BucketKey, BucketView, Hold, Holds, Refusal, Refused
from data_plane.router.core.keys import Caller, Verified
from data_plane.router.core.pricing import Price, Pricing
from data_plane.router.core.validate import Checked
from data_plane.router.exchange import Call, Receipt
from data_plane.router.tables import Tables
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import DeadlineExceededError, InvalidArgumentError, QuotaExceededError, Reason
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.cost import CostProfile

# A router hears of new leases every second; two of them usually bring a first lease.
_FIRST_LEASE_RETRY_S = 2.0

# Looking a number up on the module and the enum costs more than comparing it.
_BATCH: Final = pb.PRIORITY_BATCH


class Order:
    """A request that may run, once it holds its price.

    Args:
        request: As it came.
        tenant_id: Who pays.
        bucket: Whose quota it takes.
        model: On what.
        profile: How it is priced.
        checked: What the checks found.
        price: The estimate.
        deadline_ns: Monotonic end.
        raw: The request's own bytes, where it came as such; dropped once they have been sent.
    """

    __slots__ = (
        "bucket",
        "checked",
        "deadline_ns",
        "model",
        "price",
        "profile",
        "raw",
        "request",
        "tenant_id",
    )

    def __init__(
        self,
        request: pb.GenerateRequest,
        tenant_id: str,
        bucket: BucketKey,
        model: admin_pb2.Model,
        profile: CostProfile,
        checked: Checked,
        price: Price,
        deadline_ns: int,
        raw: bytes,
    ) -> None:
        self.request = request
        self.tenant_id = tenant_id
        self.bucket = bucket
        self.model = model
        self.profile = profile
        self.checked = checked
        self.price = price
        self.deadline_ns = deadline_ns
        self.raw = raw


class Admission:
    """The steps before a replica is picked. Everything but the wait of batch requests is synchronous.

    Args:
        tables: The platform's configuration.
        pepper: Of the key HMACs.
        pricing: Estimates.
        holds: The buckets.
        demand: Counts what was asked for.
        desk: Where batch waits.
        clock: Monotonic time.
        prompt_bytes_max: Longest prompt.
        request_timeout_ns: Longest life of a request.
    """

    def __init__(
        self,
        *,
        tables: Tables,
        pepper: bytes,
        pricing: Pricing,
        holds: Holds,
        demand: Demand,
        desk: BatchDesk,
        clock: Clock,
        prompt_bytes_max: int,
        request_timeout_ns: int,
    ) -> None:
        self._tables = tables
        self._verified = Verified(pepper)
        self._pricing = pricing
        self._holds = holds
        self._demand = demand
        self._desk = desk
        self._now_ns = clock.monotonic_ns
        self._prompt_bytes_max = prompt_bytes_max
        self._request_timeout_ns = request_timeout_ns

    def authenticate(self, authorization: str | None) -> Caller:
        """Checks a key and its tenant.

        Raises:
            UnauthenticatedError: The key or its tenant is unknown.
            PermissionDeniedError: The tenant is suspended.
        """
        caller = self._verified.authenticate(authorization, self._tables.keys)
        self._tables.check_tenant(caller.tenant_id)
        return caller

    def order(self, call: Call, receipt: Receipt) -> Order:
        """Everything that can be refused without looking at the quota.

        Args:
            call: As it came.
            receipt: Learns the tenant, the model and the price as soon as they are known.

        Raises:
            FairleadError: The request cannot run.
        """
        now_ns = self._now_ns()
        tenant_id = receipt.tenant_id = (call.caller or self.authenticate(call.authorization)).tenant_id
        request = call.request
        model_id = request.model
        if not model_id:
            raise InvalidArgumentError("model is required; ListModels tells which there are", field="model")
        model = self._tables.model(tenant_id, model_id)
        receipt.model_id = model_id
        checked = validate.check(request, model, prompt_bytes_max=self._prompt_bytes_max)
        receipt.priority, receipt.session_id = checked.priority, request.session_id
        profile = self._tables.profile(model)
        receipt.profile_id = profile.profile_id
        price = self._pricing.estimate(
            profile,
            tenant_id=tenant_id,
            model_id=model_id,
            prompt_bytes=checked.prompt_bytes,
            messages=checked.messages,
            max_tokens=checked.max_tokens,
            runs_to_max=checked.runs_to_max,
            bytes_per_token_start=model.bytes_per_token,
        )
        receipt.price = price
        validate.check_length(request, price.input_tokens, model)
        ceiling_ns = now_ns + self._request_timeout_ns
        deadline_ns = ceiling_ns if call.deadline_ns is None else min(call.deadline_ns, ceiling_ns)
        if deadline_ns <= now_ns:
            raise DeadlineExceededError("the deadline had passed when the request arrived")
        return Order(request, tenant_id, (tenant_id, model_id), model, profile, checked, price, deadline_ns, call.raw)

    def hold_at_once(self, order: Order, receipt: Receipt, *, returned: bool = False) -> Hold | None:
        """Takes the estimated price out of the tenant's quota.

        Args:
            order: What is to run.
            receipt: Learns what was decided, and from which bucket.
            returned: It had a hold before and found every replica full: its work was counted as wanted then.

        Returns:
            The hold; None for batch that has to wait for it.

        Raises:
            QuotaExceededError: The quota does not admit it now.
        """
        now_ns = self._now_ns()
        amount = receipt.estimated_milli_mu = order.price.cost.total_milli_mu
        if not returned:
            self._demand.wanted(order.bucket, amount, now_ns)
        if order.checked.priority == _BATCH and may_wait(self._holds.view(order.bucket, now_ns), amount):
            return None
        return self._answered(order, receipt, self._holds.hold(order.bucket, amount, now_ns), now_ns)

    async def wait(self, order: Order, receipt: Receipt, *, returned: bool = False) -> Hold:
        """Lets batch wait for its quota; however that ends, the receipt says how long it took and what was there.

        Args:
            order: What is to run.
            receipt: As for `hold_at_once`, which has been asked before.
            returned: As there.

        Raises:
            QuotaExceededError: The quota can never give it, or too many wait.
            DeadlineExceededError: Batch waited in vain.
        """
        begin_ns = self._now_ns()
        try:
            amount = receipt.estimated_milli_mu
            answer = await self._desk.wait(order.bucket, amount, order.deadline_ns, returned=returned)
        finally:
            now_ns = self._now_ns()
            receipt.wait_ns += now_ns - begin_ns
            receipt.quota = receipt.bucket = self._holds.view(order.bucket, now_ns)
        return self._answered(order, receipt, answer, now_ns)

    def _answered(self, order: Order, receipt: Receipt, answer: Hold | Refused, now_ns: int) -> Hold:
        quota = receipt.quota = receipt.bucket = self._holds.view(order.bucket, now_ns)
        if isinstance(answer, Refused) or 2 * quota.level_milli_mu < quota.burst_milli_mu:
            self._demand.short(order.bucket, now_ns)
        if isinstance(answer, Refused):
            raise _refused(answer, order.bucket, receipt.estimated_milli_mu, quota)
        receipt.admitted, receipt.held_milli_mu = True, receipt.estimated_milli_mu
        return answer


def _refused(refused: Refused, bucket: BucketKey, amount_milli_mu: int, quota: BucketView) -> QuotaExceededError:
    needs = f"the request is estimated at {amount_milli_mu} milli-MU"
    retry_after_s = refused.retry_after_s
    reason = Reason.QUOTA_USED_UP
    match refused.refusal:
        case Refusal.TOO_SMALL:
            reason = Reason.QUOTA_TOO_SMALL
            text = f"{needs}, more than the {quota.burst_milli_mu} this quota can save up; shorten it or ask for more"
        case Refusal.HELD:
            reason = Reason.QUOTA_HELD
            text = f"{needs}; {quota.held_milli_mu} of the quota are held by {quota.open_holds} requests in flight"
        case Refusal.NO_LEASE:
            text = f"{needs} and no quota is granted to this tenant on {bucket[1]!r} at present"
            retry_after_s = _FIRST_LEASE_RETRY_S
        case Refusal.USED_UP:
            text = f"{needs}, {max(0, quota.level_milli_mu)} of the quota are left; it refills continuously"
    return QuotaExceededError(
        text,
        reason=reason,
        retry_after_s=retry_after_s,
        subject="/".join(bucket),
        metadata={
            "needed_milli_mu": str(amount_milli_mu),
            "left_milli_mu": str(quota.level_milli_mu),
            "held_milli_mu": str(quota.held_milli_mu),
            "rate_milli_mu_per_minute": str(quota.rate_milli_mu_per_minute),
        },
    )
