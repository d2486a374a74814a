"""Promise R2: a rolling restart under traffic fails, truncates and repeats nothing; and what a kill breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc.aio
import pytest
import trustme

from common import keys
from fairlead.admin.v1 import usage_pb2
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.inference.v1 import inference_pb2_grpc
from tests.integration.router.processes import AUTH, MODEL, Platform, RouterProcess, platform
from tests.integration.router.traffic import request
from tests.support.etcd import EtcdServer
from tests.support.router_lab import KEY
from tests.support.waiting import PROCESS_START_S, eventually

pytestmark = pytest.mark.timeout(400)

TOKENS = 60
"""At the simulated H100's pace a stream lasts about half a second."""

ASK = {"model": MODEL, "prompt": "Tell me a story", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
HTTP_AUTH = {"authorization": f"Bearer {KEY}"}
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@dataclass
class Seen:
    """What clients have seen.

    Attributes:
        texts: Whole answers, by text.
        failures: What went wrong, with how and where.
        requests: Requests sent, by lane.
    """

    texts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        return self.requests.total()


class Clients:
    """Traffic of every kind to one address; each answer is checked to be whole.

    Args:
        router: Where to.
        seen: What they note.
        ca_pem: Whose certificates they accept, where the router serves over TLS.
    """

    def __init__(self, router: RouterProcess, seen: Seen, ca_pem: bytes = b"") -> None:
        self._address = router.grpc_address
        self._url = router.http_url.replace("http:", "https:" if ca_pem else "http:") + "/v1/completions"
        self._seen = seen
        self._ca_pem = ca_pem
        self._done = asyncio.Event()

    def _channel(self) -> grpc.aio.Channel:
        if not self._ca_pem:
            return grpc.aio.insecure_channel(self._address, options=OWN_CONNECTION)
        credentials = grpc.ssl_channel_credentials(self._ca_pem)
        return grpc.aio.secure_channel(self._address, credentials, options=OWN_CONNECTION)

    def _session(self) -> aiohttp.ClientSession:
        context = ssl.create_default_context(cadata=self._ca_pem.decode()) if self._ca_pem else True
        return aiohttp.ClientSession(headers=HTTP_AUTH, connector=aiohttp.TCPConnector(ssl=context))

    async def run(self) -> None:
        """Sends until `stop`."""
        async with self._session() as kept, self._channel() as channel, asyncio.TaskGroup() as tasks:
            lanes: dict[str, Callable[[], Awaitable[str]]] = {
                "unary, kept": lambda: self._unary(channel),
                "stream, kept": lambda: self._stream(channel),
                "unary, fresh": lambda: self._fresh_grpc(self._unary),
                "stream, fresh": lambda: self._fresh_grpc(self._stream),
                "http, kept": lambda: self._http(kept),
                "sse, kept": lambda: self._sse(kept),
                "http, fresh": lambda: self._fresh_http(self._http),
                "sse, fresh": lambda: self._fresh_http(self._sse),
            }
            for name, once in lanes.items():
                tasks.create_task(self._lane(name, once))

    def stop(self) -> None:
        """Ends after the requests under way."""
        self._done.set()

    async def ask_once(self) -> str:
        """One answer over a connection of its own."""
        return await self._fresh_grpc(self._unary)

    async def _lane(self, name: str, once: Callable[[], Awaitable[str]]) -> None:
        while not self._done.is_set():
            self._seen.requests[name] += 1
            try:
                async with asyncio.timeout(60.0):
                    self._seen.texts[await once()] += 1
            except (grpc.aio.AioRpcError, aiohttp.ClientError, OSError, AssertionError, TimeoutError) as error:
                code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
                self._seen.failures.append(f"{name}: {code}: {error}")

    async def _unary(self, channel: grpc.aio.Channel) -> str:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        answer = await stub.Generate(request(tokens=TOKENS), metadata=AUTH, timeout=50)
        assert answer.usage.output_tokens == TOKENS
        return answer.text

    async def _stream(self, channel: grpc.aio.Channel) -> str:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.StreamGenerate(request(tokens=TOKENS), metadata=AUTH, timeout=50)
        messages = [message async for message in call]
        assert sum(message.output_tokens for message in messages) == TOKENS
        assert messages[-1].finish_reason == pb.FINISH_REASON_LENGTH
        assert messages[-1].usage.output_tokens == TOKENS
        return "".join(message.text for message in messages)

    async def _http(self, session: aiohttp.ClientSession) -> str:
        async with session.post(self._url, json=ASK) as response:
            answer = await response.json()
            assert response.status == 200, answer
            assert answer["usage"]["completion_tokens"] == TOKENS
            return str(answer["choices"][0]["text"])

    async def _sse(self, session: aiohttp.ClientSession) -> str:
        ask = ASK | {"stream": True}
        async with session.post(self._url, json=ask) as response:
            assert response.status == 200, await response.text()
            events = [line[6:] for line in (await response.text()).splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        assert choices[-1]["finish_reason"] == "length"
        return "".join(choice["text"] for choice in choices)

    async def _fresh_grpc(self, once: Callable[[grpc.aio.Channel], Awaitable[str]]) -> str:
        async with self._channel() as channel:
            return await once(channel)

    async def _fresh_http(self, once: Callable[[aiohttp.ClientSession], Awaitable[str]]) -> str:
        async with self._session() as session:
            return await once(session)


@contextlib.asynccontextmanager
async def traffic(router: RouterProcess, ca_pem: bytes = b"") -> AsyncIterator[Seen]:
    """Requests of all kinds without a pause, each lane one at a time."""
    seen = Seen()
    clients = Clients(router, seen, ca_pem)
    running = asyncio.create_task(clients.run())
    try:
        yield seen
    finally:
        clients.stop()
        await running


def workers(router: RouterProcess) -> dict[str, int]:
    """Process ids of the workers started so far, newest by instance."""
    return {name: int(pid) for name, pid in started(router)}


def started(router: RouterProcess) -> list[tuple[str, str]]:
    return re.findall(r"worker started instance=(\S+) pid=(\d+)", router.log_path.read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass(frozen=True)
class Supervised:
    """Two routers under one supervisor, with all there is around them.

    Attributes:
        router: The supervisor.
        world: The others.
        before: Answers to the first requests.
    """

    router: RouterProcess
    world: Platform
    before: Seen


@contextlib.asynccontextmanager
async def supervised(etcd: EtcdServer, folder: Path, *flags: str, ca_pem: bytes = b"") -> AsyncIterator[Supervised]:
    """Starts it all; what it started is ended."""
    async with platform(etcd, folder) as world:
        await world.configure(reserved=2_000_000, ceiling=4_000_000)
        world.start_quota()
        for number in (1, 2):
            world.start_agent(f"agent-{number}")
        await world.wait_replicas(2)
        router = world.start_router("router", "--workers=2", "--drain-grace-s=30", *flags)
        try:
            await router.wait_ready(2 * PROCESS_START_S)
            before = Seen()
            await every_worker_answers(Clients(router, before, ca_pem), before)
            yield Supervised(router, world, before)
        finally:
            router.kill()
            for _, pid in started(router):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


async def every_worker_answers(clients: Clients, seen: Seen) -> None:
    """Waits until each worker has leases: what the first requests to a fresh platform see is not this file's matter."""

    async def answered() -> bool:
        for _ in range(8):
            seen.texts[await clients.ask_once()] += 1
        return True

    await eventually(answered, PROCESS_START_S, "answers without a refusal")


async def rolled(router: RouterProcess, times: int) -> None:
    """Waits until so many rolls are done."""

    async def done() -> bool:
        return await router.metric("fairlead_supervisor_rolls_total", outcome="done") == times

    await eventually(done, 4 * PROCESS_START_S, f"roll {times} is done")


async def more(seen: Seen, count: int) -> None:
    """Waits until so many more requests have been sent."""
    enough = seen.sent + count
    await eventually(lambda: seen.sent >= enough, PROCESS_START_S, f"{count} more requests")


async def books_balance(router: RouterProcess) -> None:
    """Whoever serves now has finished what it received, and holds nothing."""

    async def balanced() -> bool:
        received = await router.metric("fairlead_router_requests_received_total")
        finished = await router.metric("fairlead_router_requests_finished_total")
        return received == finished > 0 and await router.metric("fairlead_router_holds_open") == 0

    await eventually(balanced, 15.0, "books balance")


@pytest.mark.parametrize("rolls", [2])
async def test_rolling_restarts_under_traffic_lose_nothing(etcd: EtcdServer, tmp_path: Path, rolls: int) -> None:
    """SIGHUP: every answer is whole and the same, none fails, every old process is gone, every answer is charged once.

    Unary and streaming, gRPC and HTTP, on connections that are kept and on fresh ones.
    """
    async with supervised(etcd, tmp_path) as made:
        router = made.router
        async with traffic(router) as seen:
            await more(seen, 50)
            for times in range(1, rolls + 1):
                router.signal(signal.SIGHUP)
                await rolled(router, times)
                await more(seen, 50)
        print(f"{seen.sent} requests over {rolls} rolls of two workers: {dict(seen.requests)}")
        complete(seen)
        assert len(started(router)) == 2 + 2 * rolls
        gone = {int(pid) for _, pid in started(router)[:-2]}
        assert not any(alive(pid) for pid in gone)
        await books_balance(router)
        router.signal(signal.SIGTERM)
        assert await router.stopped(PROCESS_START_S) == 0
        answered = seen.texts.total() + made.before.texts.total()
        assert await charged(made.world) == (answered, answered * TOKENS)
        assert not list((tmp_path / "router.state" / "usage").iterdir())


def complete(seen: Seen) -> None:
    """Every request of every kind has been answered, and all alike."""
    assert seen.failures == []
    assert seen.sent == seen.texts.total()
    assert len(seen.texts) == 1, "answers differ"
    assert len(seen.requests) == 8
    assert min(seen.requests.values()) > 5


async def charged(world: Platform) -> tuple[int, int]:
    """Requests and output tokens in the store, over all processes that there ever were."""
    tables = [usage_pb2.UsageTable.FromString(entry.value) for entry in (await world.store.list(keys.USAGE)).entries]
    rows = [row for table in tables for row in table.rows]
    return sum(row.requests for row in rows), sum(row.output_tokens for row in rows)


async def certificate(address: str, ca_pem: bytes) -> bytes:
    """What the server shows on a new connection."""
    host, port = address.split(":")
    context = ssl.create_default_context(cadata=ca_pem.decode())
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        return bytes(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    finally:
        writer.close()


async def test_a_rolling_restart_renews_certificates(etcd: EtcdServer, tmp_path: Path) -> None:
    """New files and SIGHUP, under traffic over TLS: nothing fails, and afterwards every connection has the new one."""
    authority = trustme.CA()
    ca_pem = authority.cert_pem.bytes()

    def issue() -> None:
        issued = authority.issue_cert("127.0.0.1")
        (tmp_path / "key.pem").write_bytes(issued.private_key_pem.bytes())
        (tmp_path / "certificate.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    issue()
    files = f"--tls-key-file={tmp_path / 'key.pem'}", f"--tls-certificate-file={tmp_path / 'certificate.pem'}"
    async with supervised(etcd, tmp_path, *files, ca_pem=ca_pem) as made:
        router = made.router
        addresses = router.grpc_address, router.http_url.removeprefix("http://")
        before = {await certificate(address, ca_pem) for address in addresses}
        async with traffic(router, ca_pem) as seen:
            await more(seen, 30)
            issue()
            router.signal(signal.SIGHUP)
            await rolled(router, 1)
            await more(seen, 30)
        complete(seen)
        # Enough connections that both workers show theirs.
        after = {await certificate(address, ca_pem) for address in addresses for _ in range(10)}
    assert len(before) == len(after) == 1
    assert before != after


async def test_a_killed_worker_breaks_only_its_own_streams(etcd: EtcdServer, tmp_path: Path) -> None:
    """SIGKILL of one worker under traffic: what it had under way breaks off, and nothing else; soon it is back."""
    async with supervised(etcd, tmp_path) as made, traffic(made.router) as seen:
        router, victim = made.router, workers(made.router)["router-1"]
        await more(seen, 50)
        assert seen.failures == []
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: workers(router)["router-1"] != victim, PROCESS_START_S, "a new one is started")

        async def two_serve() -> bool:
            return await router.metric("fairlead_supervisor_workers", phase="ready") == 2

        await eventually(two_serve, PROCESS_START_S, "two workers serve")
        await more(seen, 50)
        broken = list(seen.failures)
    # Each lane has one request at a time: no more than one of each can have been at the dead one.
    lanes = Counter(failure.split(":")[0] for failure in broken)
    assert all(count == 1 for count in lanes.values()), broken
    allowed = ("UNAVAILABLE", "ServerDisconnectedError", "ClientOSError", "ClientPayloadError", "ConnectionResetError")
    assert all(failure.split(": ")[1] in allowed for failure in broken), broken
    assert len(seen.texts) == 1
