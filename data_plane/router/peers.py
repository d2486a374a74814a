"""Asks the other routers about a request: a tenant knows one address, behind which any of them may have served it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from common.decisions import Collected, collect_decisions, nothing_remembered
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import Reason, UnavailableError
from fairlead.inference.v1 import decision_pb2 as pb

SEARCHES_PER_TENANT_MAX: Final = 4
"""Searches of one tenant at a time: explaining is for people."""

SEARCHES_MAX: Final = 64
"""Searches of all tenants at a time: it must not become a way to keep all routers busy through one. Each takes 2 s at
most."""

_BUSY_RETRY_S: Final = 2.0


class Peers:
    """The other routers, as they registered themselves.

    Args:
        routers: All that are registered, by anything.
        token: The platform's own, which opens their decisions.
        router_id: This router.
    """

    def __init__(
        self, routers: Callable[[], Mapping[str, admin_pb2.ServiceInstance]], token: str, *, router_id: str
    ) -> None:
        self._routers = routers
        self._token = token
        self._router_id = router_id
        self._searches: Counter[str] = Counter()

    async def complete(self, request_id: str, tenant_id: str, own: list[pb.Decision], kept_max: int) -> Collected:
        """Puts what this router remembers of a request together with what the others do.

        Args:
            request_id: The request.
            tenant_id: Whose; nobody else's are asked for.
            own: What this router remembers.
            kept_max: Requests that it keeps.

        Returns:
            All of it, newest first; the others count as not asked while too many searches go on.

        Raises:
            NotFoundError: Nobody remembers it.
            UnavailableError: This router does not remember it and is too busy to ask the others.
        """
        others = {
            router.instance_id: router.address
            for router in self._routers().values()
            if router.instance_id != self._router_id
        }
        if others and self._busy(tenant_id):
            if not own:
                raise UnavailableError(
                    "this router does not remember the request, and is busy with as many searches at the others as it "
                    f"makes at a time ({SEARCHES_PER_TENANT_MAX} of one tenant): ask again in a moment",
                    reason=Reason.QUEUE_FULL,
                    retry_after_s=_BUSY_RETRY_S,
                )
            return Collected(tuple(own), tuple(sorted(others)), kept_max)
        found = await self._search(others, pb.GetDecisionRequest(request_id=request_id, tenant_id=tenant_id))
        decisions = sorted(
            [*own, *found.decisions], key=lambda decision: decision.arrive_time.ToNanoseconds(), reverse=True
        )
        whole = Collected(tuple(decisions), found.silent_router_ids, max(kept_max, found.kept_max))
        if not decisions:
            raise nothing_remembered(request_id, len(others) + 1, whole)
        return whole

    def _busy(self, tenant_id: str) -> bool:
        return self._searches[tenant_id] >= SEARCHES_PER_TENANT_MAX or self._searches.total() >= SEARCHES_MAX

    async def _search(self, others: Mapping[str, str], request: pb.GetDecisionRequest) -> Collected:
        self._searches[request.tenant_id] += 1
        try:
            return await collect_decisions(others, request, self._token)
        finally:
            self._searches[request.tenant_id] -= 1
            if not self._searches[request.tenant_id]:
                del self._searches[request.tenant_id]
