"""The core's steps, carried out against a scripted transport without a network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import pytest

from fairlead import (
    Client,
    DeadlineExceededError,
    FairleadError,
    InternalError,
    InvalidArgumentError,
    QuotaExceededError,
    Reason,
    RetryPolicy,
    UnauthenticatedError,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2
from fairlead.sdk.settings import Tls, addresses_from, api_key_from, tls_from
from fairlead.sdk.transport import MessageStream, Outgoing, StreamResponse, UnaryResponse

LAST = inference_pb2.StreamGenerateResponse(
    finish_reason=inference_pb2.FINISH_REASON_STOP, usage=inference_pb2.Usage(output_tokens=2)
)


def word(text: str) -> StreamResponse:
    return inference_pb2.StreamGenerateResponse(text=text, output_tokens=1, replica_id="r1")


class ScriptedStream:
    def __init__(self, script: Iterable[StreamResponse | FairleadError | None]) -> None:
        self._script = deque(script)
        self.cancelled = False

    def read(self) -> StreamResponse | None:
        step = self._script.popleft() if self._script else None
        if isinstance(step, FairleadError):
            raise step
        return step

    def cancel(self) -> None:
        self.cancelled = True


class ScriptedTransport:
    """Plays one script per try: an error, a message, or the messages of a stream."""

    def __init__(self, *tries: FairleadError | UnaryResponse | list[StreamResponse | FairleadError]) -> None:
        self._tries = deque(tries)
        self.sent: list[Outgoing] = []
        self.streams: list[ScriptedStream] = []

    def unary(self, outgoing: Outgoing) -> UnaryResponse:
        self.sent.append(outgoing)
        step = self._tries.popleft()
        if isinstance(step, FairleadError):
            raise step
        assert not isinstance(step, list)
        return step

    def stream(self, outgoing: Outgoing) -> MessageStream:
        self.sent.append(outgoing)
        step = self._tries.popleft()
        self.streams.append(ScriptedStream(step if isinstance(step, list) else [step]))  # type: ignore[list-item]
        return self.streams[-1]

    def close(self) -> None:
        pass


def client(transport: ScriptedTransport, *addresses: str, attempts_max: int = 4) -> Client:
    retries = RetryPolicy(attempts_max=attempts_max, backoff_initial_s=0.0)
    return Client(addresses or ("a:1", "b:1"), api_key="fl-x", retries=retries, transport=transport)


def test_a_failed_router_is_replaced_by_the_next() -> None:
    """UNAVAILABLE goes on at the other address, with the same request id and one more attempt counted."""
    transport = ScriptedTransport(UnavailableError("down"), inference_pb2.GenerateResponse(text="ok"))
    answer = client(transport).generate("x", model="tiny")
    assert (answer.text, answer.attempts) == ("ok", 2)
    assert [outgoing.address for outgoing in transport.sent] == ["a:1", "b:1"]
    assert transport.sent[0].request is transport.sent[1].request


def test_what_no_router_can_cure_keeps_the_router() -> None:
    """A missing replica is waited for with a backoff; the router that said so is not avoided."""
    errors = [UnavailableError("none", reason=Reason.NO_REPLICA) for _ in range(3)]
    transport = ScriptedTransport(*errors, inference_pb2.GenerateResponse(text="ok"))
    assert client(transport).generate("x", model="tiny").attempts == 4
    assert [outgoing.address for outgoing in transport.sent] == ["a:1", "b:1", "a:1", "b:1"]


def test_tries_are_counted_and_bounded() -> None:
    """After attempts_max tries the last error is raised, and it says how many there were."""
    transport = ScriptedTransport(*[UnavailableError("down") for _ in range(3)])
    with pytest.raises(UnavailableError) as raised:
        client(transport, attempts_max=3).generate("x", model="tiny")
    assert raised.value.metadata["attempts"] == "3"
    assert "cannot" not in raised.value.message


def test_the_deadline_spans_all_tries() -> None:
    """Every try gets only what is left, and a wait that would outlast it is not begun."""
    transport = ScriptedTransport(QuotaExceededError("used up", retry_after_s=30.0))
    with pytest.raises(QuotaExceededError) as raised:
        client(transport).generate("x", model="tiny", deadline_s=2.0)
    assert raised.value.retry_after_s == 30.0
    assert 1.0 < (transport.sent[0].timeout_s or 0) <= 2.0


def test_a_stream_is_retried_before_its_first_token_only() -> None:
    """A failure in front of the first message is unseen; one behind it is raised with what is known."""
    lost = UnavailableError("lost", reason=Reason.REPLICA_LOST)
    transport = ScriptedTransport([lost], [word("a"), word("b"), LAST])
    stream = client(transport).stream_generate("x", model="tiny")
    assert [piece.text for piece in stream] == ["a", "b"]
    assert (stream.result.text, stream.result.attempts, stream.result.replica_id) == ("ab", 2, "r1")

    transport = ScriptedTransport([word("a"), UnavailableError("lost")], [word("a"), LAST])
    stream = client(transport).stream_generate("x", model="tiny")
    assert next(stream).text == "a"
    with pytest.raises(UnavailableError):
        next(stream)
    assert len(transport.sent) == 1
    with pytest.raises(RuntimeError, match="no result"):
        _ = stream.result


def test_a_stream_without_its_last_message_is_an_error() -> None:
    """A cut-off text never passes for a whole one."""
    stream = client(ScriptedTransport([word("a")])).stream_generate("x", model="tiny")
    with pytest.raises(InternalError) as raised:
        stream.read_all()
    assert raised.value.reason is Reason.STREAM_BROKEN


def test_closing_a_stream_cancels_it() -> None:
    """Leaving the with block in the middle stops the router's work."""
    transport = ScriptedTransport([word("a"), word("b"), LAST])
    with client(transport).stream_generate("x", model="tiny") as stream:
        next(stream)
    assert transport.streams[0].cancelled
    assert list(stream) == []


def test_grpcs_own_errors_say_what_to_do() -> None:
    """An unreachable router and a missed deadline are worded for people."""
    transport = ScriptedTransport(
        UnavailableError(
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:1.2.3.4:1: Connection refused",
            reason=Reason.UNSPECIFIED,
        ),
        DeadlineExceededError("Deadline Exceeded", reason=Reason.UNSPECIFIED),
    )
    one = client(transport, "a:1", attempts_max=1)
    with pytest.raises(UnavailableError, match=r"cannot reach a router at a:1 \(Connection refused\).*doctor"):
        one.generate("x", model="tiny")
    with pytest.raises(DeadlineExceededError, match=r"deadline of 3 s.*deadline_s"):
        one.generate("x", model="tiny", deadline_s=3)


def test_settings_come_from_the_environment() -> None:
    """Arguments win over FAIRLEAD_*, and those over defaults."""
    environment = {"FAIRLEAD_ADDRESS": "a:1, b:2", "FAIRLEAD_API_KEY": " fl-1 ", "FAIRLEAD_TLS_CA_FILE": "ca.pem"}
    assert addresses_from(None, environment) == ["a:1", "b:2"]
    assert addresses_from("c:3", environment) == ["c:3"]
    assert addresses_from(None, {}) == ["127.0.0.1:8081"]
    assert api_key_from(None, environment) == "fl-1"
    assert tls_from(None, environment) == Tls(ca_file="ca.pem")
    assert tls_from(False, environment) is None
    assert tls_from(None, {}) is None
    with pytest.raises(InvalidArgumentError, match="FAIRLEAD_TLS"):
        tls_from(None, {"FAIRLEAD_TLS": "maybe"})


def test_a_missing_key_says_where_to_get_one() -> None:
    """The first error a newcomer sees names the command that helps."""
    with pytest.raises(UnauthenticatedError, match="fairlead keys create") as raised:
        api_key_from(None, {})
    assert raised.value.reason is Reason.MISSING_KEY
    with pytest.raises(UnauthenticatedError, match="copy it again"):
        api_key_from("fl-ключ", {})


def test_an_unreadable_ca_file_is_named() -> None:
    """A wrong path is found when the client is made ready, not as a handshake failure."""
    with pytest.raises(InvalidArgumentError, match=r"missing\.pem"):
        Tls(ca_file="missing.pem").credentials()
