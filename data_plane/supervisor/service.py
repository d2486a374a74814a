"""Runs the workers of one supervisor: does what the crew decides, and tells it what happens."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector

from common.logs import get_logger
from data_plane.router.config import RouterConfig
from data_plane.supervisor import wire
from data_plane.supervisor.core.crew import Action, Crew, Kill, Leave, Phase, RollEnded, Start
from data_plane.supervisor.core.patience import Patience
from data_plane.supervisor.listening import Listening
from data_plane.supervisor.metrics import SupervisorCollector
from data_plane.supervisor.naming import router_command, worker_name
from data_plane.supervisor.ops import SupervisorOps
from data_plane.supervisor.process import WorkerProcess
from fairlead.errors import InvalidArgumentError, UnavailableError

SERVICE: Final = "router"

DRAIN_MARGIN_S: Final = 10.0
"""Beyond the grace for requests and that for tickets: a router then brings its usage into the store, and leaves."""

TURN_S: Final = 0.5
"""The supervisor looks at least that often, and so notices that it was not run itself."""

_LATE_S: Final = 1.0
_REFUSED: Final = frozenset({1, 2})

log = get_logger(__name__)


async def supervise(
    config: RouterConfig, stop: asyncio.Event, *, command: Callable[[str], list[str]] = router_command
) -> None:
    """Serves with several worker processes until `stop` is set, then drains them all.

    Args:
        config: The router's settings.
        stop: Set to end it.
        command: The command of a worker, by its instance id.

    Raises:
        InvalidArgumentError: A port cannot be had, or the workers could not take it over.
        UnavailableError: No worker can start.
    """
    if config.grpc_transport != "relay":
        raise InvalidArgumentError("grpcio takes no sockets that it did not open: several workers need the relay")
    with contextlib.ExitStack() as opened:
        listening = [
            opened.enter_context(contextlib.closing(Listening(name, config.bind_host, port, config.workers)))
            for name, port in (("grpc_port", config.grpc_port), ("http_port", config.http_port))
        ]
        await Supervisor(config, listening[0], listening[1], command=command).run(stop)


class Supervisor:
    """The workers behind two ports.

    Args:
        config: The router's settings.
        grpc: The sockets of one port.
        http: The sockets of the other.
        command: The command of a worker, by its instance id.
    """

    def __init__(
        self, config: RouterConfig, grpc: Listening, http: Listening, *, command: Callable[[str], list[str]]
    ) -> None:
        self._config = config
        self._command = command
        self._listening = (grpc, http)
        patience = Patience(
            start_s=config.worker_start_s,
            hang_s=config.worker_hang_s,
            drain_s=2 * config.drain_grace_s + DRAIN_MARGIN_S,
        )
        self._crew = Crew(config.workers, patience)
        self._counts = SupervisorCollector(self._crew, time.monotonic)
        registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        registry.register(self._counts)
        self._ops = SupervisorOps(config, registry, self._crew)
        self._id = config.instance_id or f"{SERVICE}-{secrets.token_hex(4)}"
        self._processes: dict[int, WorkerProcess] = {}
        self._accepting: dict[int, frozenset[int]] = {}
        self._news = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Runs the workers until `stop` is set and all have ended."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._roll)
        ops_address = await self._ops.start()
        grpc, http = (each.port for each in self._listening)
        log.info("supervising", workers=self._config.workers, grpc_port=grpc, http_port=http, ops=ops_address)
        stopping = asyncio.create_task(self._stop_when(stop))
        try:
            async with asyncio.TaskGroup() as tasks:
                while not self._crew.stopping or self._crew.workers():
                    for action in self._crew.step(time.monotonic()):
                        self._do(action, tasks)
                    self._share_out()
                    await self._turn()
        finally:
            stopping.cancel()
            for process in self._processes.values():
                process.signal(signal.SIGKILL)
            await self._ops.stop()
        if self._crew.hopeless:
            raise UnavailableError("the routers cannot start; why is said above")

    async def _turn(self) -> None:
        """Waits for news, or until the crew has something to do."""
        began_s = time.monotonic()
        wait_s = min(TURN_S, max(0.0, self._crew.next_s() - began_s))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        self._news.clear()
        late_s = time.monotonic() - began_s - wait_s
        if late_s > _LATE_S:
            log.warning("the supervisor stood still", late_s=round(late_s, 1))
            self._crew.pardon(late_s)

    async def _stop_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        log.info("draining", workers=len(self._crew.workers()), grace_s=self._config.drain_grace_s)
        self._crew.stop(time.monotonic())
        # Once the workers have closed theirs too, clients are refused at once instead of waiting in vain.
        for each in self._listening:
            each.close()
        self._news.set()

    def _roll(self) -> None:
        log.info("rolling restart asked for", under_way=self._crew.rolling is not None)
        self._crew.roll()
        self._news.set()

    def _do(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        match action:
            case Start():
                tasks.create_task(self._run_worker(action))
            case Leave(number):
                self._signal(number, signal.SIGTERM)
            case Kill(number, why):
                name, pid = self._named(number)
                log.error("worker killed", worker=name, pid=pid, why=why.value)
                self._counts.replaced[why.value] += 1
                self._signal(number, signal.SIGKILL)
            case RollEnded(None):
                log.info("rolling restart done")
                self._counts.rolls["done"] += 1
            case RollEnded(int(slot)):
                log.error("rolling restart given up: no new worker comes up; the others stay", slot=slot + 1)
                self._counts.rolls["failed"] += 1

    async def _run_worker(self, start: Start) -> None:
        """Starts one process and waits for its end."""
        number = start.worker
        if self._crew.stopping:
            self._gone(number, None)
            return
        grpc, http = (each.numbers for each in self._listening)
        instance_id = f"{self._id}-{worker_name(start.slot, start.turn)}"
        inherited = wire.Inherited(start.slot, self._beside(start), start.replaces, -1, grpc, http)
        try:
            process = await WorkerProcess.start(
                self._command(instance_id),
                inherited,
                lambda word, others: self._hear(number, word, others),
            )
        except OSError as error:
            log.error("worker cannot be started", instance=instance_id, error=error.strerror)
            self._gone(number, None)
            return
        self._processes[number] = process
        log.info("worker started", instance=instance_id, pid=process.pid, replaces=start.replaces)
        # What was decided while it was being started has not reached it.
        worker = self._crew.worker(number)
        if worker is not None and (worker.killed is not None or worker.told):
            process.signal(signal.SIGTERM if worker.killed is None else signal.SIGKILL)
        self._gone(number, await process.wait())

    def _beside(self, start: Start) -> str:
        """The instance id of a worker that serves while this one is started: the slot's own, else any."""
        ready = [worker for worker in self._crew.workers() if worker.phase is Phase.READY and worker.killed is None]
        ready.sort(key=lambda worker: worker.slot != start.slot)
        return f"{self._id}-{worker_name(ready[0].slot, ready[0].turn)}" if ready else ""

    def _gone(self, number: int, code: int | None) -> None:
        name, pid = self._named(number)
        ended = self._crew.ended(number, time.monotonic(), refused=code in _REFUSED)
        for known in (self._processes, self._accepting, self._ops.addresses):
            known.pop(number, None)
        self._news.set()
        if ended.expected:
            log.info("worker has left", worker=name, pid=pid, exit_code=code)
        else:
            log.error(
                "worker ended" if ended.failures == 1 else "worker ends again and again; why is said above",
                worker=name,
                pid=pid,
                exit_code=code,
                failures=ended.failures,
                again_in_s=ended.pause_s,
            )
        if ended.worker.killed is None:
            self._counts.replaced["asked" if ended.expected else "died"] += 1

    def _hear(self, number: int, word: bytes, others: list[bytes]) -> None:
        if self._crew.worker(number) is None:
            return
        now_s = time.monotonic()
        if word == wire.READY:
            if others:
                self._ops.addresses[number] = others[0].decode(errors="replace")
            self._crew.ready(number, now_s)
            name, pid = self._named(number)
            log.info("worker serves", worker=name, pid=pid)
        elif word == wire.LEAVING:
            self._crew.leaves(number, now_s)
        else:
            self._crew.heard(number, now_s)
            return
        self._news.set()

    def _share_out(self) -> None:
        """Tells every ready worker where it takes connections: from its own slot, and from those nobody serves."""
        uncovered = self._crew.uncovered()
        for worker in self._crew.workers():
            process = self._processes.get(worker.number)
            wanted = uncovered | {worker.slot}
            if worker.phase is Phase.READY and process is not None and self._accepting.get(worker.number) != wanted:
                self._accepting[worker.number] = wanted
                process.accept_from(wanted)

    def _signal(self, number: int, which: signal.Signals) -> None:
        process = self._processes.get(number)
        if process is not None:
            process.signal(which)

    def _named(self, number: int) -> tuple[str, int]:
        """What a worker is called, and its process id; 0 for one that never ran."""
        worker, process = self._crew.worker(number), self._processes.get(number)
        name = worker_name(worker.slot, worker.turn) if worker is not None else ""
        return name, process.pid if process is not None else 0
