"""Promise R2: a rolling restart under traffic fails, truncates and repeats nothing; and what a kill breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc.aio
import pytest

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
        connections: Fresh connections made.
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
    """

    def __init__(self, router: RouterProcess, seen: Seen) -> None:
        self._router = router
        self._seen = seen
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Sends until `stop`."""
        kept = aiohttp.ClientSession(headers=HTTP_AUTH)
        channel = grpc.aio.insecure_channel(self._router.grpc_address, options=OWN_CONNECTION)
        async with kept, channel, asyncio.TaskGroup() as tasks:
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
        async with session.post(f"{self._router.http_url}/v1/completions", json=ASK) as response:
            answer = await response.json()
            assert response.status == 200, answer
            assert answer["usage"]["completion_tokens"] == TOKENS
            return str(answer["choices"][0]["text"])

    async def _sse(self, session: aiohttp.ClientSession) -> str:
        ask = ASK | {"stream": True}
        async with session.post(f"{self._router.http_url}/v1/completions", json=ask) as response:
            assert response.status == 200, await response.text()
            events = [line[6:] for line in (await response.text()).splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        assert choices[-1]["finish_reason"] == "length"
        return "".join(choice["text"] for choice in choices)

    async def _fresh_grpc(self, once: Callable[[grpc.aio.Channel], Awaitable[str]]) -> str:
        async with grpc.aio.insecure_channel(self._router.grpc_address, options=OWN_CONNECTION) as channel:
            return await once(channel)

    async def _fresh_http(self, once: Callable[[aiohttp.ClientSession], Awaitable[str]]) -> str:
        async with aiohttp.ClientSession(headers=HTTP_AUTH) as session:
            return await once(session)


@contextlib.asynccontextmanager
async def traffic(router: RouterProcess) -> AsyncIterator[Seen]:
    """Requests of all kinds without a pause, each lane one at a time."""
    seen = Seen()
    clients = Clients(router, seen)
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


@pytest.fixture
async def router(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[RouterProcess]:
    """Two routers under one supervisor, with all there is around them."""
    async with platform(etcd, tmp_path) as world:
        await world.configure(reserved=2_000_000, ceiling=4_000_000)
        world.start_quota()
        for number in (1, 2):
            world.start_agent(f"agent-{number}")
        await world.wait_replicas(2)
        router = world.start_router("router", "--workers=2", "--drain-grace-s=30", "--supervisor-pid", str(os.getpid()))
        try:
            await router.wait_ready(2 * PROCESS_START_S)
            await every_worker_answers(world, router)
            yield router
        finally:
            router.kill()
            for _, pid in started(router):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


async def every_worker_answers(world: Platform, router: RouterProcess) -> None:
    """Waits until each worker has leases: what the first requests to a fresh platform see is not this file's matter."""
    clients = Clients(router, Seen())

    async def answered() -> bool:
        for _ in range(8):
            await clients._fresh_grpc(clients._unary)
        return True

    await eventually(answered, PROCESS_START_S, "answers without a refusal")


async def rolled(router: RouterProcess, times: int) -> None:
    """Waits until so many rolls are done."""

    async def done() -> bool:
        return await router.metric("fairlead_supervisor_rolls_total", outcome="done") == times

    await eventually(done, 4 * PROCESS_START_S, f"roll {times} is done")


async def books_balance(router: RouterProcess) -> None:
    """Whoever serves now has finished what it received, and holds nothing."""

    async def balanced() -> bool:
        received = await router.metric("fairlead_router_requests_received_total")
        finished = await router.metric("fairlead_router_requests_finished_total")
        return received == finished > 0 and await router.metric("fairlead_router_holds_open") == 0

    await eventually(balanced, 15.0, "books balance")


async def test_two_rolling_restarts_under_traffic_lose_nothing(router: RouterProcess) -> None:
    """SIGHUP twice: every answer is whole and the same, none fails, every old process is gone, the books balance."""
    before = workers(router)
    async with traffic(router) as seen:
        await eventually(lambda: seen.sent >= 50, PROCESS_START_S)
        for times in (1, 2):
            router.signal(signal.SIGHUP)
            await rolled(router, times)
            sent = seen.sent
            await eventually(lambda sent=sent: seen.sent >= sent + 50, PROCESS_START_S)
    assert seen.failures == []
    assert seen.sent == seen.texts.total()
    assert len(seen.texts) == 1, "answers differ"
    assert len(seen.requests) == 8
    assert min(seen.requests.values()) > 10
    gone = {int(pid) for _, pid in started(router)} - set(workers(router).values())
    assert set(before) == {"router-1", "router-2"}
    assert len(started(router)) == 6
    assert len(gone) == 2
    assert not any(alive(pid) for pid in (*gone, *(pid for name, pid in workers(router).items() if name.endswith("b"))))
    await books_balance(router)
    print(f"{seen.sent} requests over two rolls of two workers: {dict(seen.requests)}")


async def test_a_killed_worker_breaks_only_its_own_streams(router: RouterProcess) -> None:
    """SIGKILL of one worker under traffic: what it had under way breaks off, and nothing else; soon it is back."""
    victim = workers(router)["router-1"]
    async with traffic(router) as seen:
        await eventually(lambda: seen.sent >= 50, PROCESS_START_S)
        assert seen.failures == []
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: workers(router)["router-1"] != victim, PROCESS_START_S, "a new one is started")
        await eventually(router.ready, PROCESS_START_S)

        async def complete() -> bool:
            return await router.metric("fairlead_supervisor_workers", phase="ready") == 2

        await eventually(complete, PROCESS_START_S, "two workers serve")
        broken = list(seen.failures)
    # Each lane has one request at a time: no more than one of each can have been at the dead one.
    lanes = Counter(failure.split(":")[0] for failure in broken)
    assert all(count == 1 for count in lanes.values()), broken
    allowed = ("UNAVAILABLE", "ServerDisconnectedError", "ClientOSError", "ClientPayloadError", "ConnectionResetError")
    assert all(failure.split(": ")[1] in allowed for failure in broken), broken
    assert len(seen.texts) == 1
