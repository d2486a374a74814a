"""The control plane asks every router about a request and puts the answers together."""

from __future__ import annotations

import pytest

from common import decisions
from common.platform_token import platform_token
from control_plane.decisions import DecisionService
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import InvalidArgumentError, NotFoundError, UnavailableError
from fairlead.inference.v1 import decision_pb2
from tests.support.decisions import TellingRouter, completed, refused, serving
from tests.support.ports import free_port

PEPPER = bytes(range(32))


def service(*routers: TellingRouter, token: str = "") -> DecisionService:
    """Knows the routers, in order, as r0, r1, ..."""
    known = {
        f"r{number}": admin_pb2.ServiceInstance(instance_id=f"r{number}", address=router.address)
        for number, router in enumerate(routers)
    }
    return DecisionService(lambda: known, token or platform_token(PEPPER))


async def ask(asked: DecisionService, request_id: str, tenant_id: str = "") -> decision_pb2.GetDecisionResponse:
    return await asked.GetDecision(
        decision_pb2.GetDecisionRequest(request_id=request_id, tenant_id=tenant_id), context=None
    )


async def test_answers_of_all_routers_are_merged_newest_first() -> None:
    """A request that was tried on several routers is explained by all of them."""
    first = TellingRouter(PEPPER, refused("q", arrive_s=100.0), completed("q", arrive_s=300.0))
    second = TellingRouter(PEPPER, refused("q", arrive_s=200.0), refused("other"))
    third = TellingRouter(PEPPER)
    async with serving(first, second, third):
        answer = await ask(service(first, second, third), "q")
    assert [decision.arrive_time.seconds for decision in answer.decisions] == [300, 200, 100]
    assert not answer.silent_router_ids


async def test_tenants_who_share_an_id_are_told_apart() -> None:
    """The tenant asked for is passed on."""
    router = TellingRouter(PEPPER, refused("q", "alpha"), refused("q", "beta"))
    async with serving(router):
        assert len((await ask(service(router), "q")).decisions) == 2
        (decision,) = (await ask(service(router), "q", "beta")).decisions
    assert decision.tenant_id == "beta"


async def test_silent_routers_are_named_and_never_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """One router is gone and one hangs: the rest answers within the limit, and both are named."""
    monkeypatch.setattr(decisions, "ROUTER_TIMEOUT_S", 0.3)
    telling, hanging, gone = TellingRouter(PEPPER, refused("q")), TellingRouter(PEPPER), TellingRouter(PEPPER)
    hanging.never_answers = True
    gone.address = f"127.0.0.1:{free_port()}"
    async with serving(telling, hanging):
        asked = service(telling, hanging, gone)
        answer = await ask(asked, "q")
        assert list(answer.silent_router_ids) == ["r1", "r2"]
        with pytest.raises(NotFoundError, match="newest 4,096 requests; r1, r2 could not be asked") as refusal:
            await ask(asked, "nothing")
        assert refusal.value.metadata["silent_router_ids"] == "r1, r2"


async def test_routers_with_another_pepper_are_silent() -> None:
    """When no router can be asked, the reason is not that the request is unknown."""
    router = TellingRouter(PEPPER, refused("q"))
    async with serving(router):
        with pytest.raises(UnavailableError, match="key_pepper_file"):
            await ask(service(router, token="0" * 64), "q")


async def test_nobody_to_ask_and_nothing_asked_are_errors() -> None:
    """Without routers, and without an id, the caller learns which of the two it is."""
    with pytest.raises(UnavailableError, match="no router is registered"):
        await ask(service(), "q")
    with pytest.raises(InvalidArgumentError, match="request_id is required"):
        await ask(service(), "")
