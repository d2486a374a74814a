"""Streams from replicas: what is asked of whom, and when the relay is used after all; without a network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from fairlead import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    FairleadError,
    InternalError,
    InvalidArgumentError,
    PermissionDeniedError,
    QuotaExceededError,
    Reason,
    RetryPolicy,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2, ticket_pb2
from fairlead.sdk.direct import REST_S, DirectMode
from tests.unit.sdk.test_core import LAST, ScriptedTransport, word

TICKET = inference_pb2.Ticket(token=b"token", address="replica:9", request_id="r", replica_id="r1")
RETURNED = inference_pb2.ReturnTicketResponse()
NO_TICKETS = FailedPreconditionError("none", reason=Reason.TICKETS_UNAVAILABLE)


def client(transport: ScriptedTransport, *, attempts_max: int = 4) -> Client:
    retries = RetryPolicy(attempts_max=attempts_max, backoff_initial_s=0.0)
    return Client(("a:1", "b:1"), api_key="fl-x", retries=retries, transport=transport, tickets=True)


def sent(transport: ScriptedTransport) -> list[tuple[str, str]]:
    return [(outgoing.method, outgoing.address) for outgoing in transport.sent]


def test_the_key_goes_to_the_router_and_the_ticket_to_the_replica() -> None:
    """One unary call and one stream; the replica gets the very request, the ticket and no key."""
    transport = ScriptedTransport(TICKET, [word("a"), word("b"), LAST])
    answer = client(transport).stream_generate("x", model="tiny").read_all()
    assert (answer.text, answer.attempts, answer.replica_id) == ("ab", 1, "r1")
    assert sent(transport) == [("IssueTicket", "a:1"), ("Redeem", "replica:9")]
    asked, redeemed = transport.sent
    assert ("authorization", "Bearer fl-x") in asked.metadata
    assert "authorization" not in dict(redeemed.metadata)
    assert redeemed.request == ticket_pb2.RedeemRequest(token=b"token", request=asked.request)  # type: ignore[arg-type]
    assert asked.timeout_s is not None
    assert redeemed.timeout_s is not None
    assert redeemed.timeout_s <= asked.timeout_s


@pytest.mark.parametrize(
    "failure",
    [
        UnavailableError("failed to connect", reason=Reason.UNSPECIFIED),
        UnavailableError("draining", reason=Reason.SHUTTING_DOWN),
        QuotaExceededError("full", reason=Reason.QUEUE_FULL, retry_after_s=1.0),
        FailedPreconditionError("late", reason=Reason.TICKET_EXPIRED),
        PermissionDeniedError("bad", reason=Reason.TICKET_INVALID),
    ],
)
def test_before_the_first_token_the_relay_takes_over(failure: FairleadError) -> None:
    """The ticket is given back where it came from, and the same request goes through a router; even with one try."""
    transport = ScriptedTransport(TICKET, [failure], RETURNED, [word("a"), LAST])
    answer = client(transport, attempts_max=1).stream_generate("x", model="tiny").read_all()
    assert (answer.text, answer.attempts) == ("a", 2)
    assert sent(transport) == [
        ("IssueTicket", "a:1"),
        ("Redeem", "replica:9"),
        ("ReturnTicket", "a:1"),
        ("StreamGenerate", "b:1"),
    ]
    assert transport.sent[2].request == inference_pb2.ReturnTicketRequest(token=b"token")
    assert transport.sent[3].request == transport.sent[0].request


def test_a_failed_return_stops_nothing() -> None:
    """The router may have forgotten the ticket."""
    transport = ScriptedTransport(
        TICKET, [UnavailableError("away", reason=Reason.UNSPECIFIED)], UnavailableError("down"), [word("a"), LAST]
    )
    assert client(transport).stream_generate("x", model="tiny").read_all().text == "a"


@pytest.mark.parametrize("failure", [NO_TICKETS, InternalError("no such method", reason=Reason.UNSPECIFIED)])
def test_where_there_are_no_tickets_the_relay_is_used_for_a_while(failure: FairleadError) -> None:
    """That is no try of the request, and the next one does not ask again."""
    transport = ScriptedTransport(failure, [word("a"), LAST], [word("b"), LAST])
    fairlead = client(transport)
    assert [fairlead.stream_generate("x", model="tiny").read_all().attempts for _ in range(2)] == [1, 1]
    assert [method for method, _ in sent(transport)] == ["IssueTicket", "StreamGenerate", "StreamGenerate"]


def test_an_unreachable_replica_rests_all_tickets() -> None:
    """Only where it could not be reached: one that refuses says nothing of the network."""
    away = UnavailableError("failed to connect", reason=Reason.UNSPECIFIED)
    full = QuotaExceededError("full", reason=Reason.QUEUE_FULL)
    for failure, methods in ((away, ["StreamGenerate"]), (full, ["IssueTicket", "Redeem"])):
        transport = ScriptedTransport(TICKET, [failure], RETURNED, [word("a"), LAST])
        fairlead = client(transport)
        fairlead.stream_generate("x", model="tiny").read_all()
        transport._tries.extend([TICKET, [word("b"), LAST]] if len(methods) == 2 else [[word("b"), LAST]])
        assert fairlead.stream_generate("x", model="tiny").read_all().text == "b"
        assert [method for method, _ in sent(transport)[4:]] == methods


def test_tickets_come_back_after_the_rest() -> None:
    """Nobody who does not want them is asked to rest."""
    mode = DirectMode(True)
    mode.rest(100.0)
    assert [mode.wanted(100.0 + REST_S - 0.001), mode.wanted(100.0 + REST_S)] == [False, True]
    assert not DirectMode(False).wanted(0.0)


def test_after_the_first_token_nothing_is_tried_again() -> None:
    """A replica that vanishes breaks the stream, whatever grpcio calls it, and the error says how much arrived."""
    transport = ScriptedTransport(
        TICKET, [word("a"), word("b"), UnavailableError("socket closed", reason=Reason.UNSPECIFIED)]
    )
    with pytest.raises(UnavailableError) as caught:
        client(transport).stream_generate("x", model="tiny", request_id="q").read_all()
    assert caught.value.reason is Reason.STREAM_BROKEN
    assert caught.value.metadata == {"output_tokens": "2", "request_id": "q", "attempts": "1"}
    assert len(transport.sent) == 2


def test_refusals_of_the_request_are_the_callers() -> None:
    """What is wrong with the request or the quota is raised as without tickets: from the router and the replica."""
    quota = QuotaExceededError("used up", reason=Reason.QUOTA_USED_UP)
    with pytest.raises(QuotaExceededError):
        client(ScriptedTransport(quota)).stream_generate("x", model="tiny").read_all()
    transport = ScriptedTransport(TICKET, [InvalidArgumentError("the engine cannot")])
    with pytest.raises(InvalidArgumentError):
        client(transport).stream_generate("x", model="tiny").read_all()
    assert len(transport.sent) == 2


def test_a_router_that_is_down_is_replaced_for_tickets_too() -> None:
    """IssueTicket is tried again like any call."""
    transport = ScriptedTransport(UnavailableError("down"), TICKET, [word("a"), LAST])
    assert client(transport).stream_generate("x", model="tiny").read_all().attempts == 2
    assert sent(transport)[:2] == [("IssueTicket", "a:1"), ("IssueTicket", "b:1")]


def test_unary_calls_do_not_ask_for_tickets() -> None:
    """A whole answer comes through the router."""
    transport = ScriptedTransport(inference_pb2.GenerateResponse(text="ok"))
    assert client(transport).generate("x", model="tiny").text == "ok"
    assert [method for method, _ in sent(transport)] == ["Generate"]


def test_tickets_are_never_sent_in_the_clear_beside_tls() -> None:
    """Both together are refused by name, in both clients."""
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidArgumentError) as caught:
            kind("a:1", api_key="fl-x", tls=True, tickets=True)
        assert caught.value.field == "tickets"


def test_the_deadline_spans_ticket_stream_and_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step gets what the ones before it left."""
    ticks: Iterator[int] = count()
    monkeypatch.setattr("fairlead.sdk.client.time.monotonic", lambda: float(next(ticks)))
    transport = ScriptedTransport(
        TICKET, [QuotaExceededError("full", reason=Reason.QUEUE_FULL)], RETURNED, [word("a"), LAST]
    )
    client(transport).stream_generate("x", model="tiny", deadline_s=100).read_all()
    left = [outgoing.timeout_s for outgoing in transport.sent if outgoing.method != "ReturnTicket"]
    assert left == sorted(left, key=lambda each: -(each or 0.0))
    assert all(each is not None and 80 < each < 100 for each in left)
