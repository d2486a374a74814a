"""What every replica reports, while this instance leads: load by key, the assignment it holds, and that it lives."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.rpc import channel
from common.shard_map import Generation
from control_plane.core.heartbeats import SILENT_S, Heartbeats
from control_plane.core.sharding.values import KeyLoad
from control_plane.metrics import ControlPlaneMetrics
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.reservation_limits import RATE_MAX_MILLI_MU_PER_MINUTE

log = get_logger(__name__)

INTERVAL_S: Final = 2
"""Between two reports: ten to the half-life of the averages they hold, and three until a replica counts as silent."""

KEY_LOADS_MAX: Final = 1_024
"""Keys in one report. Source: engine.proto."""

REMEMBERED_S: Final = 60.0
"""The last report of a replica that is gone is kept so long: what was in flight there when it died."""

_WARM_TOKENS_MAX: Final = 10**12
_LOOK_S: Final = 0.5
_RETRY_S_MIN: Final = 0.25
_RETRY_S_MAX: Final = 4.0
_PROBE_S: Final = 1.0
# The streams of a large fleet begin over this long, not in one moment.
_START_SPREAD_S_PER_REPLICA: Final = 0.002


@dataclass(slots=True)
class LastReport:
    """What a replica reported last.

    Attributes:
        model_id: The model it serves.
        report: As it came.
        at_ns: When, monotonic.
    """

    model_id: str
    report: engine_pb2.LoadReport
    at_ns: int
    _loads: tuple[KeyLoad, ...] | None = None

    def loads(self) -> Sequence[KeyLoad]:
        """Its load by key. Reading a large report takes a moment: it is done once, and in any thread."""
        if self._loads is None:
            self._loads = key_loads(self.report)
        return self._loads


class HeldGenerations:
    """The generations that replicas of one model say they hold, and the newest of them at all times."""

    def __init__(self) -> None:
        self._holders: Counter[Generation] = Counter()
        self.newest = Generation()

    def change(self, before: Generation, now: Generation) -> None:
        """A replica says that it holds another one; the zero generation stands for none.

        Args:
            before: What it said until now.
            now: What it says.
        """
        if now != Generation():
            self._holders[now] += 1
        if before != Generation():
            self._holders[before] -= 1
            if not self._holders[before]:
                del self._holders[before]
        if now >= self.newest:
            self.newest = now
        elif self.newest not in self._holders:
            self.newest = max(self._holders, default=Generation())


class ReplicaLoads:
    """One load stream per registered replica.

    Args:
        replicas: Every registered replica.
        watcher_id: Who listens, for the agents' logs.
        clock: Monotonic time.
        metrics: What to tell Prometheus.
    """

    def __init__(
        self,
        replicas: Callable[[], Iterable[engine_pb2.Replica]],
        watcher_id: str,
        clock: Clock,
        metrics: ControlPlaneMetrics,
    ) -> None:
        self._replicas = replicas
        self._clock = clock
        self._metrics = metrics
        self._request = engine_pb2.WatchLoadRequest(
            router_id=watcher_id, interval=Duration(seconds=INTERVAL_S), with_keys=True
        )
        self._beats = Heartbeats()
        self._heard: dict[str, LastReport] = {}
        self._held: dict[str, HeldGenerations] = {}
        self._streams: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._dead: frozenset[str] = frozenset()
        self._blind = False

    @property
    def dead(self) -> frozenset[str]:
        """Replicas that stopped reporting although they are still registered."""
        return self._dead

    def reports(self, model_id: str) -> Mapping[str, LastReport]:
        """What each replica of a model reported last, by replica id; for REMEMBERED_S also of those that are gone.

        It is a copy, for the thread that computes: what arrives or is forgotten meanwhile does not change it.
        """
        return {replica_id: last for replica_id, last in self._heard.items() if last.model_id == model_id}

    def newest_generation(self, model_id: str) -> Generation:
        """The newest generation of a model's assignment that any of its replicas says it holds."""
        held = self._held.get(model_id)
        return held.newest if held is not None else Generation()

    async def run(self, changed: Callable[[], None]) -> None:
        """Listens until cancelled; nothing of an earlier run is left.

        Args:
            changed: Called when a replica died or came back, or says that it holds a newer assignment.
        """
        self._beats, self._dead, self._blind = Heartbeats(), frozenset(), False
        self._heard.clear()
        self._held.clear()
        try:
            while True:
                self._follow(changed)
                self._judge(changed)
                await asyncio.sleep(_LOOK_S)
        finally:
            streams = [task for _, task in self._streams.values()]
            self._streams.clear()
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
            self._dead = frozenset()

    def _follow(self, changed: Callable[[], None]) -> None:
        """Begins and ends streams, so that every registered replica has one."""
        wanted = {each.replica_id: each for each in self._replicas() if each.address}
        for replica_id, (address, task) in list(self._streams.items()):
            if replica_id not in wanted or wanted[replica_id].address != address or task.done():
                task.cancel()
                del self._streams[replica_id]
        spread_s = len(wanted.keys() - self._streams.keys()) * _START_SPREAD_S_PER_REPLICA
        for replica_id, replica in wanted.items():
            if replica_id not in self._streams:
                watch = self._watch(replica_id, replica.model_id, replica.address, random.uniform(0, spread_s), changed)
                self._streams[replica_id] = replica.address, asyncio.create_task(watch)
        self._beats.keep(wanted)
        oldest_ns = self._clock.monotonic_ns() - round(REMEMBERED_S * NS_PER_S)
        for replica_id in [r for r, last in self._heard.items() if r not in wanted and last.at_ns < oldest_ns]:
            self._forget(replica_id)

    def _judge(self, changed: Callable[[], None]) -> None:
        now_ns = self._clock.monotonic_ns()
        silent, dead = self._beats.silent(now_ns), self._beats.dead(now_ns)
        self._metrics.replicas_heard.set(self._beats.heard_count - len(silent))
        self._metrics.replicas_silent.set(len(silent))
        blind = bool(silent) and not dead
        if blind and not self._blind:
            log.warning("most replicas fell silent at once: nobody is taken for dead", silent=len(silent))
        self._blind = blind
        if dead == self._dead:
            return
        for replica_id in sorted(dead - self._dead):
            log.warning("replica does not report any more, taken for dead", replica=replica_id)
        self._dead = dead
        changed()

    async def _watch(
        self, replica_id: str, model_id: str, address: str, delay_s: float, changed: Callable[[], None]
    ) -> None:
        retry_s = _RETRY_S_MIN
        await asyncio.sleep(delay_s)
        async with channel(address) as opened:
            stub = engine_pb2_grpc.EngineServiceStub(opened)
            while True:
                reports = await self._read(stub, replica_id, model_id, changed)
                if await _refuses(address):
                    self._beats.gone(replica_id)
                retry_s = _RETRY_S_MIN if reports else min(retry_s * 2, _RETRY_S_MAX)
                await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))

    async def _read(
        self,
        stub: engine_pb2_grpc.EngineServiceAsyncStub,
        replica_id: str,
        model_id: str,
        changed: Callable[[], None],
    ) -> int:
        """Reads a stream until it ends, breaks or hangs; returns how many reports came."""
        call, reports = stub.WatchLoad(self._request), 0
        try:
            while True:
                async with asyncio.timeout(SILENT_S):
                    report = await call.read()
                if not isinstance(report, engine_pb2.LoadReport):
                    return reports  # its end
                if report.replica_id not in ("", replica_id):
                    self._beats.gone(replica_id)  # a newer start of an agent has the address
                    return 0
                reports += 1
                self._take(report, replica_id, model_id, changed)
        except (grpc.aio.AioRpcError, TimeoutError):
            return reports
        finally:
            call.cancel()

    def _take(self, report: engine_pb2.LoadReport, replica_id: str, model_id: str, changed: Callable[[], None]) -> None:
        now_ns = self._clock.monotonic_ns()
        self._beats.heard(replica_id, now_ns)
        before = self._heard.get(replica_id)
        if before is not None and report.sequence < before.report.sequence:
            return
        if before is not None and before.model_id != model_id:
            self._forget(replica_id)
            before = None
        self._heard[replica_id] = LastReport(model_id, report, now_ns)
        newest = self.newest_generation(model_id)
        held = _generation(report)
        self._held.setdefault(model_id, HeldGenerations()).change(
            _generation(before.report) if before is not None else Generation(), held
        )
        if held > newest:
            changed()

    def _forget(self, replica_id: str) -> None:
        last = self._heard.pop(replica_id)
        self._held[last.model_id].change(_generation(last.report), Generation())


def key_loads(report: engine_pb2.LoadReport) -> tuple[KeyLoad, ...]:
    """The load by key of a report, as far as it can be true: nothing negative, nothing endless.

    Args:
        report: From an agent, so nothing about it is believed.
    """
    return tuple(
        KeyLoad(
            first_key=each.first_key,
            rate=min(max(0, each.rate_milli_mu_per_minute), RATE_MAX_MILLI_MU_PER_MINUTE),
            warm_tokens=min(max(0, each.warm_tokens), _WARM_TOKENS_MAX),
            in_flight=max(0, each.in_flight),
            tenant_id=each.tenant_id,
        )
        for each in report.key_loads[:KEY_LOADS_MAX]
    )


def _generation(report: engine_pb2.LoadReport) -> Generation:
    """What a replica says it holds; the oldest of all where that is nothing or nonsense."""
    generation = Generation.of(report.assignment)
    return generation if generation.sound else Generation()


async def _refuses(address: str) -> bool:
    """Whether nobody listens at an address any more; a host that is silent refuses nothing."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(TimeoutError, OSError, ValueError):
        try:
            async with asyncio.timeout(_PROBE_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except ConnectionRefusedError:
            return True
        writer.close()
    return False
