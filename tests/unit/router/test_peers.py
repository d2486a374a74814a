"""Routers find each other's decisions for a tenant, and only for that tenant."""

from __future__ import annotations

import asyncio

import pytest

from common.decisions import Collected
from common.platform_token import platform_token
from data_plane.router.peers import SEARCHES_MAX, SEARCHES_PER_TENANT_MAX, Peers
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import NotFoundError, UnavailableError
from tests.support.decisions import TellingRouter, completed, refused, serving
from tests.support.ports import free_port

PEPPER = bytes(range(32))


def peers(*routers: TellingRouter) -> Peers:
    """As seen by "me", which is registered too."""
    known = {
        name: admin_pb2.ServiceInstance(instance_id=name, address=address)
        for name, address in [("me", "127.0.0.1:1"), *((f"r{n}", router.address) for n, router in enumerate(routers))]
    }
    return Peers(lambda: known, platform_token(PEPPER), router_id="me")


async def test_what_others_remember_is_added() -> None:
    """This router's own and the others' decisions, newest first; this router does not ask itself."""
    other = TellingRouter(PEPPER, refused("q", arrive_s=300.0), refused("q", "beta", arrive_s=400.0))
    async with serving(other):
        found = await peers(other).complete("q", "alpha", [completed("q", arrive_s=200.0)], 10)
    assert [decision.arrive_time.seconds for decision in found.decisions] == [300, 200]
    assert found.silent_router_ids == ()


async def test_nobody_remembering_names_who_was_silent() -> None:
    """The error says how many were asked, how much they keep, and who may still know it."""
    empty, gone = TellingRouter(PEPPER), TellingRouter(PEPPER)
    gone.address = f"127.0.0.1:{free_port()}"
    async with serving(empty):
        with pytest.raises(NotFoundError) as refusal:
            await peers(empty, gone).complete("q", "alpha", [], 10_000)
    assert refusal.value.message == (
        "none of 3 routers remembers request 'q'; each keeps its newest 10,000 requests; "
        "r1 could not be asked and may know it"
    )


async def test_searches_are_bounded_per_tenant_and_in_all() -> None:
    """One tenant's many searches end with "busy" or what its router remembers, and keep no other from searching."""
    slow = TellingRouter(PEPPER)
    slow.never_answers = True
    async with serving(slow):
        asked = peers(slow)

        def searching(tenant: str, count: int) -> list[asyncio.Task[Collected]]:
            return [asyncio.create_task(asked.complete("q", tenant, [refused("q")], 10)) for _ in range(count)]

        going = searching("alpha", SEARCHES_PER_TENANT_MAX)
        await asyncio.sleep(0)
        found = await asyncio.wait_for(asked.complete("q", "alpha", [refused("q")], 10), 0.5)
        assert (len(found.decisions), found.silent_router_ids) == (1, ("r0",))
        with pytest.raises(UnavailableError, match="busy") as refusal:
            await asyncio.wait_for(asked.complete("q", "alpha", [], 10), 0.5)
        assert refusal.value.retry_after_s
        (other,) = searching("beta", 1)
        await asyncio.sleep(0)
        assert asked._searches == {"alpha": SEARCHES_PER_TENANT_MAX, "beta": 1}
        going += [other, *(task for n in range(SEARCHES_MAX) for task in searching(f"t{n}", 1))]
        await asyncio.sleep(0)
        assert asked._searches.total() == SEARCHES_MAX
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)
        assert not asked._searches
