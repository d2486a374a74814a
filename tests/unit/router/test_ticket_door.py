"""IssueTicket and ReturnTicket over gRPC: the same on the router's own relay and on grpcio, the reference."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from common.config import CommonConfig
from common.rpc import GrpcServer
from data_plane.relay.server import RelayServer
from data_plane.router.grpc_door import GrpcDoor
from data_plane.router.service import SERVICE_NAME, InferenceService
from data_plane.router.ticket_door import ticket_methods
from fairlead.errors import Reason
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.inference.v1 import inference_pb2_grpc
from tests.support.router_lab import prompt_request
from tests.support.waiting import eventually
from tests.unit.router.test_grpc_door import AUTH, refusal
from tests.unit.router.test_tickets import CANCELLED, UNUSED, Lab


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.fixture(params=["relay", "grpcio"])
async def stub(request: pytest.FixtureRequest, lab: Lab) -> AsyncIterator[Any]:
    router, config = lab.router, CommonConfig(grpc_port=0)
    server: RelayServer | GrpcServer
    if request.param == "relay":
        server = RelayServer(config, lab.telemetry)
        server.serve(SERVICE_NAME, ticket_methods(GrpcDoor(router.flow, lab.clock), router.tickets))
    else:
        server = GrpcServer(config, lab.telemetry)
    servicer = InferenceService(router.flow, lab.tables, router.pricing, lab.clock, router.tickets)
    server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE_NAME)
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)
    await server.drain_and_stop(1.0)


async def test_a_ticket_is_issued_returned_and_issued_anew(stub: Any, lab: Lab) -> None:
    """The deadline of the call is the request's; a returned ticket's id is free for the next."""
    request = prompt_request(request_id="mine")
    ticket = await stub.IssueTicket(request, metadata=AUTH, timeout=30)
    assert (ticket.request_id, ticket.replica_id) == ("mine", "r1")
    left_s = (lab.claims(ticket).deadline_ns - lab.time.monotonic_ns()) / 1e9
    assert 0 < left_s <= 30
    await stub.ReturnTicket(pb.ReturnTicketRequest(token=ticket.token), metadata=AUTH)
    again = await stub.IssueTicket(request, metadata=AUTH)
    assert again.token != ticket.token
    lab.report(ticket, outcome=UNUSED)
    lab.report(again, outcome=CANCELLED)
    assert lab.received_equals_finished()


async def test_refusals_say_why_and_are_counted(stub: Any, lab: Lab) -> None:
    """No key, a wrong message, no ticket to be had, nothing to return: typed, and nothing stays held."""
    assert (await refusal(stub.IssueTicket(prompt_request())))[0].reason is Reason.MISSING_KEY
    error, _ = await refusal(stub.IssueTicket(prompt_request(""), metadata=AUTH))
    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.metadata["request_id"]
    lab.desk.unlinked("r1")
    assert (await refusal(stub.IssueTicket(prompt_request(), metadata=AUTH)))[0].reason is Reason.TICKETS_UNAVAILABLE
    gone = stub.ReturnTicket(pb.ReturnTicketRequest(token=b"none"), metadata=AUTH)
    assert (await refusal(gone))[0].reason is Reason.NOT_FOUND
    assert {outcome for outcome, _ in lab.outcomes()} == {"refused"}
    assert lab.received_equals_finished()


async def test_who_hangs_up_while_batch_waits_holds_nothing(stub: Any, lab: Lab) -> None:
    """A cancelled call leaves the line of those that wait for quota."""
    lab.lease(60_000, 200)
    first = await stub.IssueTicket(prompt_request(), metadata=AUTH)
    lab.report(first, output_tokens=4000)
    call = stub.IssueTicket(prompt_request(priority=pb.PRIORITY_BATCH), metadata=AUTH, timeout=60)
    await eventually(lambda: lab.router.desk.waiting())
    call.cancel()
    await eventually(lambda: not lab.router.desk.waiting())
    lab.report(first, outcome=CANCELLED)
    await eventually(lab.received_equals_finished)
    assert lab.outcomes() == {("cancelled", "CANCELLED"): 2}
