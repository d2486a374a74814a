"""Messages that the router writes field by field are those that protobuf would have written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.shard_map import Generation
from data_plane.router import answers
from data_plane.router.engine_messages import engine_request
from data_plane.router.exchange import Call, Charge, Finished, Receipt, Usage
from data_plane.router.routing import Chosen, Route, weight
from data_plane.router.ticket_messages import ClaimsWriter, ticket_message
from fairlead.engine.v1 import engine_pb2, ticket_pb2
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.sharding.v1 import sharding_pb2
from model_units.cost import CostForm
from tests.support.router_lab import KEY, RouterLab, prompt_request

_tokens = st.integers(0, 2**31 - 1)
_milli_mu = st.integers(0, 2**62)


@given(
    st.text(max_size=100),
    st.text(max_size=100),
    st.text(max_size=300),
    st.tuples(_tokens, _tokens, _tokens),
    st.tuples(*[_milli_mu] * 5),
    st.sampled_from(pb.FinishReason.values()),
)
def test_answers(
    name: str,
    replica_id: str,
    text: str,
    usage: tuple[int, int, int],
    cost: tuple[int, int, int, int, int],
    reason: pb.FinishReason.ValueType,
) -> None:
    """The whole one, and the first and the last message of a stream."""
    receipt = Receipt(name, model_id=name)
    receipt.replica_id = replica_id
    finished = Finished(reason, Usage(*usage), Charge(*cost))
    counts = pb.Usage(input_tokens=usage[0], cached_input_tokens=usage[1], output_tokens=usage[2])
    names = ("estimated_milli_mu", "settled_milli_mu", "prefill_milli_mu", "decode_milli_mu", "quota_left_milli_mu")
    charge = pb.Cost(**dict(zip(names, cost, strict=True)))
    last = pb.StreamGenerateResponse(
        request_id=name, replica_id=replica_id, finish_reason=reason, usage=counts, cost=charge
    )
    assert pb.StreamGenerateResponse.FromString(answers.last_message(receipt, finished)) == last
    whole = pb.GenerateResponse(
        request_id=name,
        model=name,
        text=text,
        finish_reason=reason,
        usage=counts,
        cost=charge,
        replica_id=replica_id,
    )
    assert pb.GenerateResponse.FromString(answers.whole_message(receipt, text.encode(), finished)) == whole
    begin = pb.StreamGenerateResponse.FromString(answers.begin(receipt))
    assert begin == pb.StreamGenerateResponse(request_id=name, replica_id=replica_id)


def _route(
    lab: RouterLab, request: pb.GenerateRequest, raw: bytes, blocks: Sequence[int], generation: Generation
) -> tuple[Route, Chosen]:
    """A request of the lab on its way to a replica."""
    receipt = Receipt("drawn")
    order = lab.router.flow.admission.order(Call(request, f"Bearer {KEY}", raw=raw), receipt)
    route = lab.router.routing.route(order, receipt)
    route.blocks = tuple(blocks)
    chosen = lab.router.routing.at_once(route, (), may_wait=False)
    assert isinstance(chosen, Chosen)
    chosen.generation = generation
    return route, chosen


@pytest.mark.parametrize("came_as_bytes", [False, True])
@pytest.mark.parametrize("max_tokens", [None, 1, 300])
@pytest.mark.parametrize("blocks", [(), (1, 2**64 - 1)])
@pytest.mark.parametrize("generation", [Generation(), Generation(2**62, 2**61)])
async def test_what_a_replica_is_sent(
    came_as_bytes: bool, max_tokens: int | None, blocks: tuple[int, ...], generation: Generation
) -> None:
    """All of the request and everything the router adds; the limit is the one that was checked."""
    lab = RouterLab(("r1",))
    sampling = pb.SamplingParameters(temperature=0.5, max_tokens=max_tokens)
    request = prompt_request("Once upon a time", sampling=sampling)
    raw = request.SerializeToString() if came_as_bytes else b""
    route, chosen = _route(lab, request, raw, blocks, generation)
    order = route.order
    expected = engine_pb2.EngineGenerateRequest(
        request_id="drawn",
        tenant_id=order.tenant_id,
        request=request,
        priority=order.checked.priority,
        prefill_milli_mu=chosen.pick.uncached_prefill_milli_mu,
        decode_milli_mu=order.price.cost.decode_milli_mu,
        weight=weight(route.receipt),
        router_id="router-1",
        dispatch_number=chosen.dispatch.number,
        shard_key=route.shard_key,
        prefix_blocks=blocks,
    )
    expected.request.sampling.max_tokens = max_tokens or 256
    if generation != Generation():
        expected.assignment.CopyFrom(sharding_pb2.Generation(incarnation=2**62, number=2**61))
    assert engine_pb2.EngineGenerateRequest.FromString(engine_request(route, chosen, "router-1")) == expected


@pytest.mark.parametrize("blocks", [(), (1, 2)])
@pytest.mark.parametrize("generation", [Generation(), Generation(2**62, 2**61)])
async def test_what_a_ticket_claims(blocks: tuple[int, ...], generation: Generation) -> None:
    """All that the replica has to know; of another profile of the same id, which replaces it, that one's constants."""
    lab = RouterLab(("r1",))
    route, chosen = _route(lab, prompt_request("Once upon a time"), b"", blocks, generation)
    order, receipt, writer = route.order, route.receipt, ClaimsWriter()
    receipt.estimated_milli_mu = 7
    profile = order.profile
    for order.profile in (profile, replace(profile, a=2.0, d=0.0, form=CostForm.PRODUCT), profile):
        expected = ticket_pb2.TicketClaims(
            number=3,
            request_digest=b"d" * 16,
            expires_ns=2**62,
            deadline_ns=order.deadline_ns,
            request_id="drawn",
            tenant_id=order.tenant_id,
            max_tokens=256,
            priority=pb.PRIORITY_INTERACTIVE,
            prefill_milli_mu=chosen.pick.uncached_prefill_milli_mu,
            decode_milli_mu=order.price.cost.decode_milli_mu,
            weight=weight(receipt),
            dispatch_number=chosen.dispatch.number,
            shard_key=route.shard_key,
            with_prefix_blocks=bool(blocks),
            price=ticket_pb2.TicketPrice(
                estimated_milli_mu=7,
                quota_left_milli_mu=receipt.quota_left_milli_mu,
                input_tokens=order.price.input_tokens,
                a=order.profile.a,
                b=order.profile.b,
                d=order.profile.d,
                g=order.profile.g,
                product=order.profile.form is CostForm.PRODUCT,
            ),
        )
        if generation != Generation():
            expected.assignment.CopyFrom(sharding_pb2.Generation(incarnation=2**62, number=2**61))
        claims = writer.claims(route, chosen, 3, b"d" * 16, 2**62)
        assert ticket_pb2.TicketClaims.FromString(claims) == expected


@given(st.text(max_size=100), st.binary(max_size=300), _milli_mu, st.integers(0, 2**61))
def test_tickets(name: str, token: bytes, estimated_milli_mu: int, expire_wall_ns: int) -> None:
    """What the client gets."""
    receipt = Receipt(name)
    receipt.replica_id, receipt.estimated_milli_mu = name, estimated_milli_mu
    expected = pb.Ticket(
        request_id=name, address=name, token=token, replica_id=name, estimated_milli_mu=estimated_milli_mu
    )
    expected.expire_time.FromNanoseconds(expire_wall_ns)
    assert pb.Ticket.FromString(ticket_message(receipt, name, token, expire_wall_ns)) == expected


async def test_a_client_that_says_a_field_twice_is_understood_as_protobuf_does() -> None:
    """The last value holds, at the router and at the replica alike."""
    lab = RouterLab(("r1",))
    once = prompt_request("first", sampling=pb.SamplingParameters(max_tokens=5)).SerializeToString()
    raw = once + prompt_request("second", sampling=pb.SamplingParameters(max_tokens=2)).SerializeToString()
    exchange = lab.router.flow.open(Call(pb.GenerateRequest.FromString(raw), f"Bearer {KEY}", raw=raw))
    async with asyncio.timeout(10), aclosing(exchange.events()) as events:
        assert [event async for event in events]
    ((_, sent, _),) = lab.upstream.calls
    assert (sent.request.prompt, sent.request.sampling.max_tokens) == ("second", 2)
