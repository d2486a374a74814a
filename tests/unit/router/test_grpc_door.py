"""The inference API over gRPC: the same on the router's own relay and on grpcio, the reference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from common.config import CommonConfig
from common.rpc import GrpcServer
from data_plane.relay.server import RelayServer
from data_plane.router.answers import receipt_metadata
from data_plane.router.core.accounts import Outcome
from data_plane.router.exchange import Receipt
from data_plane.router.grpc_door import GrpcDoor, trailers
from data_plane.router.service import SERVICE_NAME, InferenceService
from fairlead.errors import FairleadError, QuotaExceededError, Reason, UnavailableError, from_rpc_error
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.inference.v1 import inference_pb2_grpc
from tests.support.router_lab import KEY, MODEL, RouterLab, Script, prompt_request
from tests.support.waiting import eventually

AUTH = (("authorization", f"Bearer {KEY}"),)
LOST = UnavailableError("gone", reason=Reason.REPLICA_LOST)


@pytest.fixture
def lab() -> RouterLab:
    return RouterLab(["r1", "r2"])


@pytest.fixture(params=["relay", "grpcio"])
async def channel(request: pytest.FixtureRequest, lab: RouterLab) -> AsyncIterator[grpc.aio.Channel]:
    router, config = lab.router, CommonConfig(grpc_port=0)
    server: RelayServer | GrpcServer
    if request.param == "relay":
        server = RelayServer(config, lab.telemetry)
        server.serve(SERVICE_NAME, GrpcDoor(router.flow, lab.clock).methods())
    else:
        server = GrpcServer(config, lab.telemetry)
    servicer = InferenceService(router.flow, lab.tables, router.pricing, lab.clock, router.tickets)
    server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE_NAME)
    address = await server.start()
    # A window that does not grow, so that a client which stops reading is soon full.
    async with grpc.aio.insecure_channel(address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        yield channel
    await server.drain_and_stop(1.0)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]


async def refusal(call: Any) -> tuple[FairleadError, dict[str, Any]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value), dict(caught.value.trailing_metadata() or ())


async def test_a_stream_says_whose_it_is_first_and_what_it_cost_last(stub: Any, lab: RouterLab) -> None:
    """Ids on the first and last message and no other, text and tokens in between, the receipt in the trailers."""
    call = stub.StreamGenerate(prompt_request(request_id="mine"), metadata=AUTH)
    messages = [message async for message in call]
    assert [message.text for message in messages] == ["Hello", " ", "world", ""]
    assert [message.output_tokens for message in messages] == [1, 1, 1, 0]
    assert [message.request_id for message in messages] == ["mine", "", "", "mine"]
    assert messages[0].replica_id == messages[-1].replica_id in ("r1", "r2")
    assert messages[-1].finish_reason == pb.FINISH_REASON_STOP
    trailers = dict(await call.trailing_metadata())
    assert trailers["fairlead-request-id"] == "mine"
    assert int(trailers["fairlead-settled-milli-mu"]) == messages[-1].cost.settled_milli_mu > 0
    assert trailers["fairlead-replica"] == messages[0].replica_id
    assert lab.received_equals_finished()


@given(st.text(max_size=200), st.text(max_size=200), st.integers(0, 2**62))
def test_the_receipt_in_the_trailers_is_read_as_it_was_written(request_id: str, replica_id: str, amount: int) -> None:
    """Whatever its values and however long they are."""
    receipt = Receipt(request_id)
    receipt.replica_id, receipt.estimated_milli_mu = replica_id, amount
    read = Decoder().decode(trailers(receipt), raw=True)
    assert [(bytes(name), bytes(value)) for name, value in read] == [
        (name.encode(), value.encode()) for name, value in receipt_metadata(receipt)
    ]


async def test_a_whole_answer(stub: Any, lab: RouterLab) -> None:
    """Generate answers once with everything; the same id again is replayed and costs nothing more."""
    answer = await stub.Generate(prompt_request(request_id="once"), metadata=AUTH)
    assert (answer.text, answer.model, answer.request_id) == ("Hello world", MODEL, "once")
    assert answer.usage.output_tokens == 3
    again = await stub.Generate(prompt_request(request_id="once"), metadata=AUTH)
    assert (again.text, again.cost) == (answer.text, answer.cost)
    assert lab.router.holds.settled_milli_mu == answer.cost.settled_milli_mu
    repeated = [message async for message in stub.StreamGenerate(prompt_request(request_id="once"), metadata=AUTH)]
    assert "".join(message.text for message in repeated) == "Hello world"
    assert lab.received_equals_finished()


async def test_text_of_any_kind_arrives_as_it_was(stub: Any, lab: RouterLab) -> None:
    """Long pieces, pieces of several bytes a character, many tokens in one: nothing is lost or cut."""
    pieces = ["é" * 70, "汉字" * 9_000, "x" * 127, "y" * 128, "z" * 20_000, "\0"]
    lab.upstream.scripts["r1"] = lab.upstream.scripts["r2"] = Script(pieces=pieces)
    messages = [message async for message in stub.StreamGenerate(prompt_request(), metadata=AUTH)]
    assert [message.text for message in messages[:-1]] == pieces
    assert (await stub.Generate(prompt_request(), metadata=AUTH)).text == "".join(pieces)


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer fl-abcdefghijklmnop-wrong"),)])
async def test_who_has_no_key_is_refused_and_counted(stub: Any, lab: RouterLab, metadata: Any) -> None:
    """UNAUTHENTICATED with its reason and an id to ask about; received and refused."""
    error, trailers = await refusal(stub.Generate(prompt_request(), metadata=metadata))
    assert error.reason is (Reason.UNKNOWN_KEY if metadata else Reason.MISSING_KEY)
    assert error.metadata["request_id"] == trailers["fairlead-request-id"]
    assert [outcome for _, _, outcome, _ in lab.router.accounts.finished] == [Outcome.REFUSED]
    assert lab.received_equals_finished()


async def test_refusals_have_their_details(stub: Any, lab: RouterLab) -> None:
    """Out of quota says so, with a time to come back and what it was estimated at."""
    lab.lease(60, 10)
    error, trailers = await refusal(stub.Generate(prompt_request("x" * 4_000), metadata=AUTH))
    assert isinstance(error, QuotaExceededError)
    assert int(trailers["fairlead-estimated-milli-mu"]) > 10
    assert trailers["fairlead-settled-milli-mu"] == "0"


async def test_a_stream_that_breaks_says_how_far_it_came(stub: Any, lab: RouterLab) -> None:
    """After the first token a lost replica ends the stream with STREAM_BROKEN; what arrived is charged."""
    lab.upstream.scripts["r1"] = lab.upstream.scripts["r2"] = Script(fail_after=2, failure=LOST)
    call = stub.StreamGenerate(prompt_request(), metadata=AUTH)
    texts = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in call:
            texts.append(message.text)
    error = from_rpc_error(caught.value)
    assert texts == ["Hello", " "]
    assert error.reason is Reason.STREAM_BROKEN
    assert error.metadata["output_tokens"] == "2"
    assert lab.received_equals_finished()


async def test_a_cancelled_call_ends_at_the_replica(stub: Any, lab: RouterLab) -> None:
    """A client that goes away ends the work, and pays for what it got."""
    step = asyncio.Event()
    lab.upstream.scripts["r1"] = lab.upstream.scripts["r2"] = Script(pieces=["a"] * 100, step=step)
    call = stub.StreamGenerate(prompt_request(), metadata=AUTH)
    step.set()
    assert (await call.read()).text == "a"
    call.cancel()
    await eventually(lambda: lab.upstream.cancelled)
    await eventually(lab.received_equals_finished)
    assert [outcome for _, _, outcome, _ in lab.router.accounts.finished] == [Outcome.CANCELLED]
    assert lab.router.holds.settled_milli_mu > 0


async def test_the_callers_deadline_ends_the_request(stub: Any, lab: RouterLab) -> None:
    """DEADLINE_EXCEEDED, the replica is told, and the books balance."""
    gate = asyncio.Event()
    lab.upstream.scripts["r1"] = lab.upstream.scripts["r2"] = Script(gate=gate)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(prompt_request(), metadata=AUTH, timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lab.received_equals_finished)
    await eventually(lambda: lab.upstream.cancelled)


async def test_a_client_that_does_not_read_holds_the_replica(stub: Any, lab: RouterLab) -> None:
    """What piles up for a client that has stopped reading is bounded, and the rest comes once it reads on."""
    pieces = ["x" * 1_000] * 3_000
    lab.upstream.scripts["r1"] = lab.upstream.scripts["r2"] = Script(pieces=pieces)
    call = stub.StreamGenerate(
        prompt_request(sampling=pb.SamplingParameters(max_tokens=len(pieces))), metadata=AUTH, timeout=60
    )
    first = await call.read()
    await asyncio.sleep(0.3)
    (receipt,) = lab.router.flow.books.decisions.find(first.request_id, None)
    assert receipt.output_tokens < len(pieces)
    rest = [first]
    while (message := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
        rest.append(message)
    assert "".join(message.text for message in rest) == "".join(pieces)


async def test_what_is_no_request_is_refused(channel: grpc.aio.Channel, stub: Any) -> None:
    """Bytes that do not parse end the call with an error, and nothing else."""
    method = channel.unary_unary(f"/{SERVICE_NAME}/Generate")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"\xff\xff\xff", metadata=AUTH)
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN)
    assert (await stub.Generate(prompt_request(), metadata=AUTH)).text == "Hello world"
