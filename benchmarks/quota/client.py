"""The tenants: a process that keeps streams open against the routers and writes down how each request ended.

It is told what to do by lines of JSON on its standard input and answers on its standard output (`remote.py` is the
other side). Raw gRPC stubs: on two cores the client must cost less than what it measures.

    {"do": "streams", "tenant": ID, "count": N}    keeps N requests going, each next one after the one before
    {"do": "arrivals", "tenant": ID, "per_s": X}   sends X a second at random times, and never again what was refused
    {"do": "routers", "addresses": [...]}          where to
    {"do": "samples"}                              everything that ended since it was last asked
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc.aio

from benchmarks.quota.workload import MAX_TOKENS, Item, pool
from fairlead.errors import UnavailableError, from_rpc_error
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.inference.v1 import inference_pb2_grpc

POOL: Final = 1_500
"""Used in turn, so that a prompt has usually left the replicas' prefix caches, or went to another one, when it comes
again."""
REQUEST_TIMEOUT_S: Final = 60.0
# A refused stream comes back when it was told to; refused again, it waits twice as long, and it remembers: a hundred
# streams behind a quota for four are refused whatever they do, and each refusal costs the machine that is measured.
RETRY_S_MIN: Final = 0.5
RETRY_S_MAX: Final = 8.0
_LINE_BYTES_MAX: Final = 1 << 20


class Tenants:
    """Every tenant's streams.

    Args:
        api_keys: By tenant.
        model: What is asked.
        items: The requests there are.
        source: Of the randomness.
    """

    def __init__(self, api_keys: Mapping[str, str], model: str, items: Sequence[Item], source: random.Random) -> None:
        self._metadata = {tenant: (("authorization", f"Bearer {key}"),) for tenant, key in api_keys.items()}
        self._requests = [
            (
                item,
                pb.GenerateRequest(
                    model=model,
                    prompt=item.prompt,
                    sampling=pb.SamplingParameters(max_tokens=MAX_TOKENS, temperature=1.0, seed=item.seed),
                ),
            )
            for item in items
        ]
        self._source = source
        self._turn = 0
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: list[Any] = []
        self._streams: dict[str, list[asyncio.Task[None]]] = {}
        self._arrivals: dict[str, asyncio.Task[None]] = {}
        self._wanted: Counter[str] = Counter()
        self._sending: set[asyncio.Task[bool]] = set()
        self.samples: list[list[Any]] = []
        self.refused: Counter[str] = Counter()
        self.in_flight = 0

    async def routers(self, addresses: Sequence[str]) -> None:
        """Replaces where requests go; those under way end where they are."""
        old, self._channels = self._channels, [grpc.aio.insecure_channel(address) for address in addresses]
        self._stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in self._channels]
        for channel in old:
            await channel.close(REQUEST_TIMEOUT_S)

    def streams(self, tenant: str, count: int) -> None:
        """Sets how many requests of a tenant are kept going; those beyond it end with the request they are at."""
        tasks = self._streams.setdefault(tenant, [])
        tasks[:] = [task for task in tasks if not task.done()]
        self._wanted[tenant] = count
        for number in range(len(tasks), count):
            tasks.append(asyncio.create_task(self._stream(tenant, number)))

    def arrivals(self, tenant: str, per_s: float) -> None:
        """Sets how many requests of a tenant are sent per second."""
        running = self._arrivals.pop(tenant, None)
        if running is not None:
            running.cancel()
        if per_s > 0:
            self._arrivals[tenant] = asyncio.create_task(self._arrive(tenant, per_s))

    async def _arrive(self, tenant: str, per_s: float) -> None:
        due_s = time.monotonic()
        for number in range(sys.maxsize):
            due_s += self._source.expovariate(per_s)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            task = asyncio.create_task(self._once(tenant, number % len(self._stubs)))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _once(self, tenant: str, router: int) -> bool:
        try:
            return await self._send(tenant, router, self._next()) is None
        except UnavailableError:
            return False

    async def _stream(self, tenant: str, number: int) -> None:
        router, backoff_s, item = number % len(self._stubs), RETRY_S_MIN, self._next()
        while number < self._wanted[tenant]:
            try:
                wait_s = await self._send(tenant, router, item)
            except UnavailableError:
                # This router is gone: the next one takes the stream, as a load balancer would have it.
                router, wait_s = (router + 1) % len(self._stubs), 0.2
            if wait_s is None:
                backoff_s, item = max(RETRY_S_MIN, backoff_s / 2), self._next()
                continue
            await asyncio.sleep(min(RETRY_S_MAX, max(wait_s, backoff_s)) * self._source.uniform(1.0, 1.1))
            backoff_s = min(RETRY_S_MAX, backoff_s * 2)

    def _next(self) -> tuple[Item, pb.GenerateRequest]:
        self._turn += 1
        return self._requests[self._turn % len(self._requests)]

    async def _send(self, tenant: str, router: int, what: tuple[Item, pb.GenerateRequest]) -> float | None:
        """Sends one request and notes its end; returns how long to wait if it was refused.

        Raises:
            UnavailableError: The router cannot be reached.
        """
        item, request = what
        sent_s, first_s, tokens = time.monotonic(), 0.0, 0
        self.in_flight += 1
        try:
            call = self._stubs[router % len(self._stubs)].StreamGenerate(
                request, metadata=self._metadata[tenant], timeout=REQUEST_TIMEOUT_S
            )
            async for message in call:
                if message.finish_reason:
                    self._note(tenant, router, "ok", item, sent_s, first_s, tokens, message)
                    continue
                first_s = first_s or time.monotonic()
                tokens += message.output_tokens
            return None
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.refused[tenant] += 1
                return from_rpc_error(error).retry_after_s or RETRY_S_MAX
            self._note(tenant, router, "failed", item, sent_s, first_s, tokens, None)
            raise UnavailableError(error.details() or "the stream broke") from error
        finally:
            self.in_flight -= 1

    def _note(
        self,
        tenant: str,
        router: int,
        outcome: str,
        item: Item,
        sent_s: float,
        first_s: float,
        tokens: int,
        last: pb.StreamGenerateResponse | None,
    ) -> None:
        usage, cost = (last.usage, last.cost) if last is not None else (pb.Usage(), pb.Cost())
        complete = last is not None and last.finish_reason == pb.FINISH_REASON_STOP and tokens == item.output_tokens
        self.samples.append(
            [
                tenant,
                router,
                outcome,
                complete,
                sent_s,
                first_s - sent_s if first_s else None,
                time.monotonic(),
                usage.input_tokens,
                usage.cached_input_tokens,
                usage.output_tokens or tokens,
                cost.settled_milli_mu,
                cost.estimated_milli_mu,
                item.input_tokens,
                item.output_tokens,
            ]
        )

    def take_samples(self) -> dict[str, Any]:
        """Everything that ended since the last call."""
        answer = {"samples": self.samples, "refused": dict(self.refused), "in_flight": self.in_flight}
        self.samples, self.refused = [], Counter()
        return answer


async def main() -> None:
    """Does what it is told until its input ends."""
    facts = json.loads(os.environ["BENCH_QUOTA_CLIENT"])
    items = pool(POOL, facts["seed"])
    tenants = Tenants(facts["keys"], facts["model"], items, random.Random(facts["seed"]))
    reader = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _answer({"ready": len(items)})
    while line := await reader.readline():
        order = json.loads(line)
        answer: dict[str, Any] = {}
        match order["do"]:
            case "streams":
                tenants.streams(order["tenant"], order["count"])
            case "arrivals":
                tenants.arrivals(order["tenant"], order["per_s"])
            case "routers":
                await tenants.routers(order["addresses"])
            case "samples":
                answer = tenants.take_samples()
        _answer(answer)


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
