"""Both clients against a real gRPC server."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from fairlead import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    Explanation,
    FinishReason,
    NotFoundError,
    QuotaExceededError,
    Reason,
    RetryPolicy,
    Tls,
    UnauthenticatedError,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2_grpc
from tests.support.decisions import refused
from tests.support.fake_platform import FakePlatform, FakeRouter
from tests.support.ports import free_port
from tests.support.waiting import eventually

KEY = "fl-key-alpha"


def used_up(retry_after_s: float | None) -> QuotaExceededError:
    return QuotaExceededError("used up: come back later", retry_after_s=retry_after_s, subject="alpha/tiny")


def test_generate_returns_text_usage_and_cost(platform: FakePlatform) -> None:
    """A unary answer carries everything the platform knows about it."""
    with Client(platform.address, api_key=KEY) as client:
        answer = client.generate("12345678", model="tiny", max_tokens=3, request_id="r-1")
    assert (answer.text, answer.finish_reason) == ("w0 w1 w2", FinishReason.LENGTH)
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (2, 3, 5)
    assert (answer.cost.settled_milli_mu, answer.cost.settled_mu) == (32, 0.032)
    assert (answer.request_id, answer.replica_id, answer.attempts) == ("r-1", "replica-1", 1)


def test_stream_delivers_pieces_then_the_result(platform: FakePlatform) -> None:
    """The pieces make up the text, and the result equals the unary answer's."""
    with Client(platform.address, api_key=KEY) as client:
        stream = client.stream_chat([{"role": "user", "content": "Hi"}], model="tiny", max_tokens=3)
        assert "".join(piece.text for piece in stream) == "w0 w1 w2"
    assert stream.result.text == "w0 w1 w2"
    assert stream.result.request_id == stream.request_id
    assert platform.router.seen[0].request.chat.messages[0].content == "Hi"


def test_requests_are_explained_to_their_tenant(platform: FakePlatform) -> None:
    """Both clients ask the router; another tenant's request does not exist."""
    platform.router.decisions += [refused("r-1"), refused("r-2", "beta")]

    async def ask() -> Explanation:
        async with AsyncClient(platform.address, api_key=KEY) as client:
            return await client.explain("r-1")

    with Client(platform.address, api_key=KEY) as client:
        explanation = client.explain("r-1")
        with pytest.raises(NotFoundError, match="newest"):
            client.explain("r-2")
    assert explanation == asyncio.run(ask())
    assert explanation.decisions[0].reason == Reason.QUOTA_USED_UP


def test_models_are_listed(platform: FakePlatform) -> None:
    """What a tenant may use comes back typed."""
    with Client(platform.address, api_key=KEY) as client:
        (model,) = client.list_models()
    assert (model.id, model.context_tokens, model.bytes_per_token) == ("tiny", 256, 4.0)


def test_a_refusal_is_waited_out_under_one_request_id(platform: FakePlatform) -> None:
    """RetryInfo is honoured, and every try carries the same id, so that it is billed once."""
    platform.router.refusals.extend([used_up(0.02), used_up(0.02)])
    with Client(platform.address, api_key=KEY) as client:
        answer = client.generate("x", model="tiny", max_tokens=1)
    assert answer.attempts == 3
    assert len({seen.request.request_id for seen in platform.router.seen}) == 1


def test_a_refusal_without_a_time_is_raised_typed(platform: FakePlatform) -> None:
    """The exception carries reason, subject and request id over the wire."""
    platform.router.refusals.append(used_up(None))
    with Client(platform.address, api_key=KEY) as client, pytest.raises(QuotaExceededError) as raised:
        client.generate("x", model="tiny", request_id="r-2")
    assert (raised.value.reason, raised.value.subject) == (Reason.QUOTA_USED_UP, "alpha/tiny")
    assert raised.value.metadata["request_id"] == "r-2"


def test_wrong_key_and_wrong_model(platform: FakePlatform) -> None:
    """Each mistake has its own class and is not retried."""
    with Client(platform.address, api_key="fl-nobody") as client, pytest.raises(UnauthenticatedError):
        client.list_models()
    with Client(platform.address, api_key=KEY) as client, pytest.raises(NotFoundError) as raised:
        client.generate("x", model="huge")
    assert raised.value.reason is Reason.UNKNOWN_MODEL
    assert len(platform.router.seen) == 2


def test_a_dead_router_is_passed_over(platform: FakePlatform) -> None:
    """With two addresses, one of them closed, every call succeeds."""
    addresses = [f"127.0.0.1:{free_port()}", platform.address]
    with Client(addresses, api_key=KEY) as client:
        attempts = [client.generate("x", model="tiny", max_tokens=1).attempts for _ in range(4)]
    assert attempts == [2, 1, 1, 1]


def test_nobody_there_says_what_to_do() -> None:
    """The error names the address and the command that helps."""
    address = f"127.0.0.1:{free_port()}"
    client = Client(address, api_key=KEY, retries=RetryPolicy(attempts_max=2, backoff_initial_s=0.01))
    with client, pytest.raises(UnavailableError, match=f"{address}.*fairlead doctor"):
        client.generate("x", model="tiny")


def test_the_deadline_ends_a_silent_call(platform: FakePlatform) -> None:
    """No answer in time is a DeadlineExceededError, and the router learned the deadline."""
    platform.router.never_answers = True
    with Client(platform.address, api_key=KEY) as client, pytest.raises(DeadlineExceededError, match=r"0\.2 s"):
        client.generate("x", model="tiny", deadline_s=0.2)
    assert 0 < (platform.router.seen[0].timeout_s or 0) <= 0.2


async def test_closing_a_sync_stream_stops_the_router(platform: FakePlatform) -> None:
    """Leaving the stream in the middle is seen by the router as a cancellation."""
    platform.router.hold = asyncio.Event()
    with Client(platform.address, api_key=KEY) as client:
        with client.stream_generate("x", model="tiny") as stream:
            assert next(stream).text == "w0"
        await eventually(lambda: platform.router.cancelled == [stream.request_id])


async def test_async_generate_and_stream(platform: FakePlatform) -> None:
    """The asyncio client gives the same answers."""
    async with AsyncClient(platform.address, api_key=KEY) as client:
        assert [model.id for model in await client.list_models()] == ["tiny"]
        answer = await client.generate("x", model="tiny", max_tokens=2)
        chat = await client.chat([{"role": "user", "content": "x"}], model="tiny", max_tokens=2)
        async with client.stream_generate("x", model="tiny", max_tokens=2) as stream:
            pieces = [piece.text async for piece in stream]
        also = await client.stream_chat([{"role": "user", "content": "x"}], model="tiny", max_tokens=2).read_all()
    assert answer.text == chat.text == stream.result.text == also.text == "".join(pieces) == "w0 w1"


async def test_many_at_once(platform: FakePlatform) -> None:
    """One client serves many tasks, each with its own answer."""
    async with AsyncClient(platform.address, api_key=KEY) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.generate("x", model="tiny", max_tokens=n)) for n in range(1, 33)]
    assert [task.result().usage.output_tokens for task in tasks] == list(range(1, 33))


async def test_cancelling_the_reader_stops_the_router(platform: FakePlatform) -> None:
    """A cancelled task leaves no work behind."""
    platform.router.hold = asyncio.Event()
    async with AsyncClient(platform.address, api_key=KEY) as client:
        stream = client.stream_generate("x", model="tiny")
        assert (await anext(stream)).text == "w0"
        task = asyncio.create_task(stream.read_all())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: platform.router.cancelled == [stream.request_id])


async def test_a_broken_stream_tells_what_it_cost(platform: FakePlatform) -> None:
    """After the first token nothing is retried; the trailers' facts are in the error."""
    platform.router.break_after_tokens = 2
    async with AsyncClient(platform.address, api_key=KEY) as client:
        with pytest.raises(UnavailableError) as raised:
            await client.stream_generate("x", model="tiny").read_all()
    assert raised.value.reason is Reason.STREAM_BROKEN
    assert raised.value.metadata["settled_milli_mu"] == "20"
    assert raised.value.metadata["replica"] == "replica-1"
    assert len(platform.router.seen) == 1


async def test_one_span_per_call_joins_the_platforms_trace(platform: FakePlatform) -> None:
    """The span's context travels as traceparent; retries are events; no text is recorded."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    platform.router.refusals.append(used_up(0.01))
    async with AsyncClient(platform.address, api_key=KEY, tracer_provider=provider) as client:
        await client.stream_generate("top secret", model="tiny", max_tokens=2).read_all()
        platform.router.refusals.append(used_up(None))
        with pytest.raises(QuotaExceededError):
            await client.generate("top secret", model="tiny")
    good, bad = exporter.get_finished_spans()
    assert good.name == "text_completion tiny"
    assert good.attributes is not None
    assert good.attributes["gen_ai.usage.output_tokens"] == 2
    assert good.attributes["fairlead.replica.id"] == "replica-1"
    assert [event.name for event in good.events] == ["fairlead.retry", "fairlead.first_token"]
    assert good.context is not None
    assert platform.router.seen[1].metadata["traceparent"].split("-")[1] == f"{good.context.trace_id:032x}"
    assert bad.status.status_code is StatusCode.ERROR
    assert "secret" not in good.to_json() + bad.to_json()


def test_without_an_opentelemetry_sdk_nothing_is_sent(platform: FakePlatform) -> None:
    """No trace context leaves a program that does not trace."""
    with Client(platform.address, api_key=KEY) as client:
        client.generate("x", model="tiny", max_tokens=1)
    assert "traceparent" not in platform.router.seen[0].metadata


@pytest.fixture
def certified(tmp_path: Path) -> tuple[Path, grpc.ServerCredentials]:
    """A certificate for router.test, and the credentials of a server that shows it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    line = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {certificate}"
    line += " -days 2 -subj /CN=router.test -addext subjectAltName=DNS:router.test"
    subprocess.run(line.split(), check=True, capture_output=True)
    return certificate, grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])


async def test_tls_with_an_authority_of_ones_own(certified: tuple[Path, grpc.ServerCredentials]) -> None:
    """A server's certificate is checked against the CA file that was given, and against nothing else."""
    certificate, credentials = certified
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(FakeRouter(), server)
    address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    await server.start()
    try:
        trusted = Tls(ca_file=certificate, server_name="router.test")
        async with AsyncClient(address, api_key=KEY, tls=trusted) as client:
            assert [model.id for model in await client.list_models()] == ["tiny"]
        once = RetryPolicy(attempts_max=1)
        async with AsyncClient(address, api_key=KEY, tls=Tls(server_name="router.test"), retries=once) as client:
            with pytest.raises(UnavailableError, match="cannot reach a router"):
                await client.list_models()
    finally:
        await server.stop(0)
