"""Asks the other routers about a request: a tenant knows one address, behind which any of them may have served it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from common.decisions import Collected, collect_decisions, nothing_remembered
from fairlead.admin.v1 import admin_pb2
from fairlead.inference.v1 import decision_pb2 as pb

SEARCHES_MAX: Final = 8
"""Searches at a time: explaining is for people, and must not become a way to keep all routers busy through one."""


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
        self._searches = 0

    async def complete(self, request_id: str, tenant_id: str, own: list[pb.Decision], kept_max: int) -> Collected:
        """Puts what this router remembers of a request together with what the others do.

        Args:
            request_id: The request.
            tenant_id: Whose; nobody else's are asked for.
            own: What this router remembers.
            kept_max: Requests that it keeps.

        Returns:
            All of it, newest first; the others are silent while too many searches go on.

        Raises:
            NotFoundError: Nobody remembers it.
        """
        others = {
            router.instance_id: router.address
            for router in self._routers().values()
            if router.instance_id != self._router_id
        }
        found = await self._search(others, pb.GetDecisionRequest(request_id=request_id, tenant_id=tenant_id))
        decisions = sorted(
            [*own, *found.decisions], key=lambda decision: decision.arrive_time.ToNanoseconds(), reverse=True
        )
        whole = Collected(tuple(decisions), found.silent_router_ids, max(kept_max, found.kept_max))
        if not decisions:
            raise nothing_remembered(request_id, len(others) + 1, whole)
        return whole

    async def _search(self, others: Mapping[str, str], request: pb.GetDecisionRequest) -> Collected:
        if self._searches >= SEARCHES_MAX:
            return Collected((), tuple(sorted(others)), 0)
        self._searches += 1
        try:
            return await collect_decisions(others, request, self._token)
        finally:
            self._searches -= 1
