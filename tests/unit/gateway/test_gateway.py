"""The OpenAI endpoints over a real HTTP server, with the real openai client and with raw requests."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from typing import Any

import aiohttp
import openai
import pytest

from data_plane.gateway.app import Gateway
from data_plane.gateway.server import HttpServer
from fairlead.errors import Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.router_lab import KEY, MODEL, OTHER_KEY, RouterLab, Script
from tests.support.waiting import eventually

LOST = UnavailableError("gone", reason=Reason.REPLICA_LOST)
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def lab() -> RouterLab:
    return RouterLab(["r1", "r2"])


@pytest.fixture
async def base(lab: RouterLab) -> AsyncIterator[str]:
    gateway = Gateway(lab.router.flow, lab.tables, lab.clock, decisions=lab.router.decisions, body_bytes_max=200_000)
    server = HttpServer(gateway, host="127.0.0.1", port=0, reuse_port=False, grace_s=1.0)
    port = await server.start()
    yield f"http://127.0.0.1:{port}"
    await server.drain_and_stop()


@pytest.fixture
async def client(base: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=base + "/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(base: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(base, headers={"Authorization": f"Bearer {KEY}"}) as session:
        yield session


def chat(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": MESSAGES, **fields}


async def test_chat_with_the_openai_client(client: openai.AsyncOpenAI, lab: RouterLab) -> None:
    """A whole chat answer parses into the client's types with usage, ids and the finish reason."""
    answer: Any = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=5, user="u", n=1)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 3, 10)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.object == "chat.completion"
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.id.startswith("chatcmpl-")
    _, sent, _ = lab.upstream.calls[0]
    assert sent.request.sampling.max_tokens == 5
    assert [(m.role, m.content) for m in sent.request.chat.messages] == [("user", "Hi")]


async def test_a_streamed_chat_with_the_openai_client(client: openai.AsyncOpenAI) -> None:
    """Chunks arrive one by one, the role first, the usage last, and the client ends the stream at [DONE]."""
    stream: Any = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=9,
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello world"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, None, None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 10
    cost = chunks[-1].usage.model_extra["fairlead"]  # the headers left before the cost was known
    assert cost["settled_milli_mu"] > 0
    assert cost["replica_id"]
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_plain_completions_streamed_and_not(client: openai.AsyncOpenAI) -> None:
    """The completions endpoint answers in its own shape, both ways."""
    answer = await client.completions.create(model=MODEL, prompt="Once", max_tokens=4, stop=["x"], seed=-1)
    assert answer.choices[0].text == "Hello world"
    assert answer.object == "text_completion"
    stream = await client.completions.create(model=MODEL, prompt=["Once"], stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_models(client: openai.AsyncOpenAI) -> None:
    """A tenant sees its models and no others."""
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "fairlead"
    with pytest.raises(openai.PermissionDeniedError):
        await client.models.retrieve("secret-model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("org/none")


async def test_errors_become_the_clients_own_exceptions(base: str, client: openai.AsyncOpenAI) -> None:
    """401, 403, 404 and 400 arrive as the openai client's typed exceptions with code and param."""
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="none", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=9)
    assert bad.value.param == "temperature"
    for key, kind in (
        ("fl-abcdefghijklmnop-no", openai.AuthenticationError),
        (OTHER_KEY, openai.PermissionDeniedError),
    ):
        async with openai.AsyncOpenAI(api_key=key, base_url=base + "/v1", max_retries=0) as other:
            with pytest.raises(kind):
                await other.chat.completions.create(model=MODEL, messages=MESSAGES)


async def test_quota_refusals_carry_retry_after_and_limits(lab: RouterLab, client: openai.AsyncOpenAI) -> None:
    """429 with Retry-After, its exact form in ms, and the x-ratelimit headers of both kinds."""
    lab.router.holds.apply({}, expires_ns=0, now_ns=lab.clock.monotonic_ns())
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    headers = caught.value.response.headers
    assert caught.value.code == "rate_limit_exceeded"
    assert headers["retry-after"] == "2"
    assert headers["retry-after-ms"] == "2000"
    assert headers["x-ratelimit-remaining-mu"] == "0"
    assert headers["x-ratelimit-remaining-requests"] == "0"


async def test_too_small_a_quota_tells_clients_not_to_retry(lab: RouterLab, base: str) -> None:
    """A request above the burst is answered once, although the client would retry a 429."""
    lab.lease(60, 1)
    async with openai.AsyncOpenAI(api_key=KEY, base_url=base + "/v1", max_retries=5) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.code == "insufficient_quota"
    assert lab.router.accounts.received == 1


async def test_the_receipt_is_in_the_headers(http: aiohttp.ClientSession, lab: RouterLab) -> None:
    """Request id, replica, estimate, charge and quota left come as headers; a correlation id is echoed."""
    async with http.post("/v1/chat/completions", json=chat(), headers={"X-Request-Id": "mine-1"}) as response:
        assert response.status == 200
        headers = response.headers
    assert headers["x-request-id"] == "mine-1"
    assert headers["x-fairlead-replica"] in ("r1", "r2")
    assert int(headers["x-fairlead-settled-milli-mu"]) == lab.router.holds.settled_milli_mu
    assert int(headers["x-fairlead-quota-left-milli-mu"]) > 0
    assert float(headers["x-ratelimit-limit-mu"]) == 6000


async def test_session_priority_and_idempotency_headers(http: aiohttp.ClientSession, lab: RouterLab) -> None:
    """Extension headers reach the flow; a repeated Idempotency-Key is answered without a replica."""
    extra = {"X-Fairlead-Session": "s1", "X-Fairlead-Priority": "batch", "Idempotency-Key": "k1"}
    texts = []
    for _ in range(2):
        async with http.post("/v1/chat/completions", json=chat(), headers=extra) as response:
            assert response.status == 200
            texts.append((await response.json())["choices"][0]["message"]["content"])
    assert texts[0] == texts[1]
    assert len(lab.upstream.calls) == 1
    _, sent, _ = lab.upstream.calls[0]
    assert (sent.request.session_id, sent.priority) == ("s1", pb.PRIORITY_BATCH)


async def test_the_callers_trace_is_joined(http: aiohttp.ClientSession, lab: RouterLab) -> None:
    """traceparent of the HTTP request is the parent of the router's span and reaches the replica."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    async with http.post(
        "/v1/chat/completions", json=chat(), headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    ) as response:
        assert response.status == 200
    assert lab.upstream.calls[0][2]["traceparent"].split("-")[1] == trace_id


BAD_BODIES = [
    (b"{", "", "JSON"),
    (b"", "", "JSON"),
    (b'{"model": "\xff\xfe"}', "", "UTF-8"),
    (b"[1]", "", "object"),
    (json.dumps(chat(max_tokens="5")).encode(), "max_tokens", "int"),
    (json.dumps(chat(max_tokens=0)).encode(), "max_tokens", "1 to"),
    (json.dumps(chat(max_tokens=-5)).encode(), "max_tokens", "1 to"),
    (json.dumps(chat(max_tokens=10**9)).encode(), "max_tokens", "1 to"),
    (json.dumps(chat(max_tokens=10**30)).encode(), "max_tokens", "range"),
    (json.dumps(chat(max_completion_tokens=2**40)).encode(), "max_completion_tokens", "range"),
    (json.dumps(chat(max_tokens=True)).encode(), "max_tokens", "int"),
    (json.dumps(chat(temperature=2.1)).encode(), "temperature", "0 to 2"),
    (json.dumps(chat(temperature=1e300)).encode(), "temperature", "0 to 2"),
    (json.dumps(chat(top_p=0)).encode(), "top_p", "above 0"),
    (json.dumps(chat(presence_penalty=-3)).encode(), "presence_penalty", "-2 to 2"),
    (json.dumps(chat(seed=2**70)).encode(), "seed", "64 bits"),
    (json.dumps(chat(stop=["x"] * 17)).encode(), "stop", "16"),
    (json.dumps(chat(stop=[""])).encode(), "stop[0]", "bytes"),
    (json.dumps(chat(n=2)).encode(), "n", "not supported"),
    (json.dumps(chat(tools=[{"type": "function"}])).encode(), "tools", "not supported"),
    (json.dumps(chat(logprobs=True)).encode(), "logprobs", "not supported"),
    (json.dumps(chat(response_format={"type": "json_object"})).encode(), "response_format", "not supported"),
    (json.dumps(chat(temprature=1)).encode(), "temprature", "unknown field"),
    (json.dumps({"messages": MESSAGES}).encode(), "model", "missing"),
    (json.dumps({"model": MODEL}).encode(), "messages", "missing"),
    (json.dumps({"model": MODEL, "messages": []}).encode(), "messages", "1 to"),
    (
        json.dumps({"model": MODEL, "messages": [{"role": "robot", "content": "x"}]}).encode(),
        "messages[0].role",
        "one of",
    ),
    (json.dumps({"model": MODEL, "messages": [{"role": "user"}]}).encode(), "messages[0].content", "text parts"),
    (
        json.dumps(
            {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}
        ).encode(),
        "messages[0].content[0]",
        "text parts",
    ),
]


@pytest.mark.parametrize(("body", "param", "says"), BAD_BODIES)
async def test_bad_bodies_are_refused_by_name(
    http: aiohttp.ClientSession, lab: RouterLab, body: bytes, param: str, says: str
) -> None:
    """Whatever is wrong is answered 400 in OpenAI's shape, naming the field; no replica is asked."""
    async with http.post("/v1/chat/completions", data=body) as response:
        error = (await response.json())["error"]
        assert response.status == 400, error
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "") == param
    assert says in error["message"]
    assert not lab.upstream.calls
    assert lab.router.accounts.received == 1
    assert lab.received_equals_finished()


HARMLESS = [
    {"n": 1, "logprobs": False, "tools": [], "response_format": {"type": "text"}, "logit_bias": {}, "store": True},
    {"metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True, "modalities": ["text"]},
    {"top_k": 5, "repetition_penalty": 1.1, "ignore_eos": True},
    {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    {"messages": [{"role": "user", "content": "x", "name": "me"}, {"role": "assistant", "content": None}]},
    {"stream_options": None, "temperature": None, "stop": None},
]


@pytest.mark.parametrize("fields", HARMLESS)
async def test_harmless_fields_are_taken(http: aiohttp.ClientSession, fields: dict[str, object]) -> None:
    """What OpenAI defines and does not change the answer is accepted."""
    async with http.post("/v1/chat/completions", json=chat(**fields)) as response:
        assert response.status == 200, await response.text()


@pytest.mark.parametrize("name", ["X-Fairlead-Session", "Idempotency-Key", "X-Fairlead-Priority", "Authorization"])
async def test_headers_that_are_no_text(base: str, lab: RouterLab, name: str) -> None:
    """Bytes that are not ASCII in a header of ours are refused by name, not a defect."""
    body = json.dumps(chat()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    if name != "Authorization":
        head += f"Authorization: Bearer {KEY}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rsplit(":", 1)[1]))
    writer.write(head.encode() + name.encode() + b": Bearer \xff\xfe\r\n\r\n" + body)
    answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] in (b"400", b"401"), answer
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["message"]
    assert not lab.upstream.calls


async def test_limits_of_http_itself(http: aiohttp.ClientSession, base: str) -> None:
    """413 for a large body, 431 for a huge header, 404 and 405 for wrong places, all in the same shape."""
    async with http.post("/v1/chat/completions", data=b"x" * 300_000) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (413, "body_too_large")
    async with http.get("/v1/nothing") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "unknown_url")
    async with http.get("/v1/chat/completions") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (405, "method_not_allowed")
    port = int(base.rsplit(":", 1)[1])
    for raw, status in (
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 40_000 + b"\r\n\r\n", b"431"),
        (b"not http at all\r\n\r\n", b"400"),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        answer = await reader.read()
        writer.close()
        assert answer.split(b" ")[1] == status
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["type"] == "invalid_request_error"


async def test_a_replica_lost_before_the_first_token_is_a_503(lab: RouterLab, client: openai.AsyncOpenAI) -> None:
    """Streaming or not, the status line is still free for the error."""
    lab.upstream.scripts = {name: Script(fail_before=LOST) for name in ("r1", "r2")}
    for stream in (False, True):
        # Unlike prompts: one that lost two replicas is refused from then on.
        messages: Any = [{"role": "user", "content": f"Tell me more, streaming: {stream}"}]
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=messages, stream=stream)
        assert caught.value.status_code == 503
        assert caught.value.code == "replica_lost"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model=MODEL, messages=messages)
    assert refused.value.code == "request_quarantined"


async def test_an_error_after_the_first_token_is_an_event(lab: RouterLab, client: openai.AsyncOpenAI) -> None:
    """A stream that breaks ends with an error event, which the client raises."""
    lab.upstream.scripts = {name: Script(pieces="abcdef", fail_after=3, failure=LOST) for name in ("r1", "r2")}
    stream: Any = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    texts = []
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content)
    assert texts == ["a", "b", "c"]
    assert caught.value.code == "stream_broken"
    assert lab.received_equals_finished()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_vanishes_stops_the_engine(
    http: aiohttp.ClientSession, lab: RouterLab, stream: bool
) -> None:
    """Closing the connection cancels the replica's work within a quarter of a second and refunds the hold."""
    step = asyncio.Event()
    lab.upstream.scripts = {name: Script(pieces="x" * 100, step=step) for name in ("r1", "r2")}
    task = asyncio.create_task(http.post("/v1/chat/completions", json=chat(stream=stream)).__aenter__())
    await eventually(lambda: lab.upstream.running == 1)
    if stream:
        step.set()
        response = await task
        await response.content.readline()
        response.close()
    else:
        task.cancel()
    started_s = asyncio.get_running_loop().time()
    await eventually(lambda: lab.upstream.cancelled)
    assert asyncio.get_running_loop().time() - started_s < 0.25
    await eventually(lab.received_equals_finished)
    assert {outcome.value for _, _, outcome, _ in lab.router.accounts.finished} == {"cancelled"}


class Taken(Sequence[str]):
    """So many large pieces, which are counted as they are taken from the replica."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.taken = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self
        if index >= self.length:
            raise IndexError
        self.taken += 1
        return "y" * 20_000


async def test_a_client_that_never_reads_does_not_pile_up_the_answer(lab: RouterLab, base: str) -> None:
    """The relay stops pulling from the replica once the socket is full, instead of buffering the rest."""
    pieces = Taken(4000)
    lab.upstream.scripts = {name: Script(pieces=pieces) for name in ("r1", "r2")}
    port = int(base.rsplit(":", 1)[1])
    body = json.dumps(chat(stream=True, max_tokens=4000)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        sock.sendall(head.encode() + body)
        await eventually(lambda: pieces.taken > 1)
        await asyncio.sleep(0.2)
        relayed = pieces.taken
        await asyncio.sleep(0.2)
        assert pieces.taken == relayed < 100
    await eventually(lab.received_equals_finished)
    assert pieces.taken == relayed


async def test_nothing_is_sent_before_the_first_token(http: aiohttp.ClientSession, lab: RouterLab) -> None:
    """The status line waits for the first token, so that a failure before it can still be retried or told."""
    gate = asyncio.Event()
    lab.upstream.scripts = {name: Script(gate=gate) for name in ("r1", "r2")}
    task = asyncio.create_task(http.post("/v1/chat/completions", json=chat(stream=True)).__aenter__())
    await eventually(lambda: lab.upstream.running == 1)
    assert not task.done()
    gate.set()
    response = await task
    assert response.status == 200
    assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_every_answer_names_its_request_and_can_be_explained(http: aiohttp.ClientSession) -> None:
    """Answers and errors of every kind carry an id; under it the tenant learns why, and another tenant nothing."""
    url = "/v1/chat/completions"
    for body, status, reason in (
        (json.dumps(chat()).encode(), 200, ""),
        (b"{", 400, "INVALID_ARGUMENT"),
        (b"x" * 300_000, 413, "INVALID_ARGUMENT"),
        (json.dumps(chat(model="none")).encode(), 404, "UNKNOWN_MODEL"),
    ):
        async with http.post(url, data=body, headers={"x-request-id": "mine"}) as answer:
            name = answer.headers["x-fairlead-request-id"]
            assert (answer.status, answer.headers["x-request-id"]) == (status, "mine")
            if status != 200:
                assert (await answer.json(content_type=None))["error"]["request_id"] == name
        async with http.get(f"/v1/requests/{name}/decision") as answer:
            (decision,) = (await answer.json())["decisions"]
            assert (decision["request_id"], decision.get("reason", "")) == (name, reason)
        other = {"Authorization": f"Bearer {OTHER_KEY}"}
        async with http.get(f"/v1/requests/{name}/decision", headers=other) as answer:
            assert answer.status == 404
    for path in ("/v1/models", "/v1/models/none", "/nowhere", url):
        async with http.get(path) as answer:
            assert answer.headers["x-request-id"]
