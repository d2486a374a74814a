"""Brings the platform up, keeps it running, takes it down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from common.rpc import channel
from deploy.local import demo, leftovers, programs, secret_files, showcase, status
from deploy.local.children import Child, Program, log_tail
from deploy.local.console import Console, StartError, stop_signals
from deploy.local.engine_choice import EngineChoice
from deploy.local.etcd import etcd_program, find_etcd
from deploy.local.options import Options
from deploy.local.ports import HOST, Ports, free_ports, hold
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import DeadlineExceededError, FairleadError, UnavailableError

START_LIMIT_S = 120.0
REPLICA_STARTS_MAX = 3
POLL_S = 0.2
STOP_GRACE_S = 6.0
SWEEP_GRACE_S = 8.0


class StopAsked(Exception):
    """A signal asked the platform to stop."""


class LocalPlatform:
    """One run of the platform.

    Args:
        options: What the person chose.
        choice: Engine and number of replicas.
        ports: Where it serves.
        console: What the person sees.
    """

    def __init__(self, options: Options, choice: EngineChoice, ports: Ports, console: Console) -> None:
        self._options = options
        self._choice = choice
        self._console = console
        self._model = demo.demo_model(choice.engine, choice.replicas)
        self._etcd_ports = free_ports(2)
        self._site = programs.Site(
            run_dir=options.run_dir,
            etcd_endpoint=f"{HOST}:{self._etcd_ports[0]}",
            ports=ports,
            secrets=secret_files.prepare(options.run_dir / "secrets"),
            standbys=options.standbys,
        )
        self._children: list[Child] = []
        self._up = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._held = [held for port in (ports.http, ports.grpc) if (held := hold(port))]

    async def run(self) -> None:
        """Runs until a signal comes.

        Raises:
            StartError: It could not be started; everything is stopped again.
        """
        self._watch_signals()
        leftovers.adopt_orphans()
        problem: StartError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._raise_when_asked())
                tasks.create_task(leftovers.reap_orphans(self._own_pids))
                await self._bring_up(tasks)
        except* StopAsked:
            pass
        except* StartError as group:
            problem = _first(group)
        finally:
            await self._take_down()
        if problem is not None:
            raise problem

    def _watch_signals(self) -> None:
        def asked() -> None:
            (self._hurry if self._stop.is_set() else self._stop).set()

        for number in stop_signals():
            asyncio.get_running_loop().add_signal_handler(number, asked)

    async def _raise_when_asked(self) -> None:
        """Ends the run on a signal, or when the make that started it is gone."""
        parent = os.getppid() if os.environ.get("MAKELEVEL") else 0
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stop.wait()
            if parent and os.getppid() != parent:
                self._stop.set()
        raise StopAsked

    async def _bring_up(self, tasks: asyncio.TaskGroup) -> None:
        deadline_s = asyncio.get_running_loop().time() + START_LIMIT_S
        await leftovers.stop_replicas(self._site)
        leftovers.remove_shared_memory()
        self._fresh_logs()
        await self._start_store(tasks)
        # Where the store holds another model of an earlier run, nothing may start its replicas before it is retired.
        late = self._other_model_before()
        self._start(tasks, *programs.control_planes(self._site))
        if not late:
            self._start(tasks, *programs.autoscalers(self._site))
        self._start(tasks, *programs.routers(self._site), *programs.quota_services(self._site))
        async with channel(f"{HOST}:{self._site.ports.admin}") as connection:
            api = demo.AdminApi(connection, self._site.secrets.admin_token.read_text().strip())
            await self._until(deadline_s, lambda: _silent(api))
            keys = await self._seed(api)
            if late:
                self._start(tasks, *programs.autoscalers(self._site))
            self._model_path.write_text(self._model.model_id)
            await self._until(deadline_s, lambda: self._missing(api))
            await showcase.first_requests(self._site, self._model, keys, deadline_s)
            await self._publish(api, keys)
            tasks.create_task(
                status.keep_document(self._document_path, self._site, self._model, keys, api, self._children)
            )
            if self._options.replay_s:
                await showcase.show_replay(self._site, self._model, keys, self._options.replay_s, self._console)
            self._console.say(showcase.closing_words(self._site, self._model, keys))
            await self._stop.wait()

    async def _start_store(self, tasks: asyncio.TaskGroup) -> None:
        binary = await asyncio.to_thread(find_etcd)
        self._console.step(f"starting {binary} and the services")
        data_dir = self._site.run_dir / "etcd"
        client, peer = self._etcd_ports
        self._start(tasks, etcd_program(binary, data_dir, client_port=client, peer_port=peer))

    def _start(self, tasks: asyncio.TaskGroup, *wanted: Program) -> None:
        for program in wanted:
            child = Child(program, self._site.log_dir, self._console)
            self._children.append(child)
            tasks.create_task(child.keep_running(self._up))

    async def _until(self, deadline_s: float, lacking: Callable[[], Awaitable[list[str]]]) -> None:
        """Returns once nothing lacks any more.

        Raises:
            StartError: Something still lacks at the deadline, or a replica keeps dying.
        """
        while lacks := await lacking():
            self._refuse_dying_replicas()
            if asyncio.get_running_loop().time() > deadline_s:
                raise StartError(self._too_late(lacks))
            await asyncio.sleep(POLL_S)

    async def _missing(self, api: demo.AdminApi) -> list[str]:
        try:
            now = await status.read_status(api)
        except FairleadError as error:
            return [f"the control plane ({error.message})"]
        return await status.missing(now, self._children, self._model)

    async def _seed(self, api: demo.AdminApi) -> dict[str, str]:
        try:
            return await demo.seed(api, self._model, self._site.secrets)
        except FairleadError as error:
            raise StartError(f"the demo tenants could not be made: {error.message}") from error

    async def _publish(self, api: demo.AdminApi, keys: dict[str, str]) -> None:
        now = await status.read_status(api)
        document = status.platform_document(self._site, self._model, keys, now, self._children)
        secret_files.write_private(self._document_path, document)
        self._up.set()
        count = sum(replica.model_id == self._model.model_id for replica in now.replicas)
        self._console.step(f"everything serves: {count} replicas behind {programs.ROUTERS} routers")

    def _refuse_dying_replicas(self) -> None:
        for seat_file in self._site.seats_dir.glob("*/*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                if json.loads(seat_file.read_text())["start_number"] > REPLICA_STARTS_MAX:
                    raise StartError(self._replica_words(seat_file, f"{seat_file.stem} does not come up"))

    def _replica_words(self, seat_file: Path, headline: str) -> str:
        log = self._site.log_dir / f"{seat_file.parent.name}-{seat_file.stem}.log"
        return "\n".join([f"{headline}. The end of {log}:", *log_tail(log)])

    def _too_late(self, lacks: list[str]) -> str:
        """What to say when something does not serve in time, with the logs of those it concerns."""
        lines = [f"Not serving after {START_LIMIT_S:g} s: {', '.join(lacks)}."]
        for child in self._children:
            if any(lack.startswith(child.name) or child.name.startswith(lack.split(" ")[-1]) for lack in lacks):
                lines += [f"The end of {child.log_path}:", *log_tail(child.log_path)]
        if any(lack.startswith("replicas") for lack in lacks):
            for seat_file in sorted(self._site.seats_dir.glob("*/*.json"))[:2]:
                lines.append(self._replica_words(seat_file, seat_file.stem))
        return "\n".join(lines)

    @property
    def _document_path(self) -> Path:
        return self._site.run_dir / "platform.json"

    @property
    def _model_path(self) -> Path:
        return self._site.run_dir / "demo-model"

    def _other_model_before(self) -> bool:
        return self._model_path.exists() and self._model_path.read_text() != self._model.model_id

    def _own_pids(self) -> set[int]:
        return {child.pid for child in self._children}

    def _fresh_logs(self) -> None:
        """Starts new logs; those of the run before stay beside them."""
        previous = self._site.log_dir.with_name("logs.previous")
        if self._site.log_dir.exists():
            shutil.rmtree(previous, ignore_errors=True)
            self._site.log_dir.rename(previous)
        self._site.log_dir.mkdir(parents=True)

    async def _take_down(self) -> None:
        """Stops everything: first what takes requests and starts replicas, then the replicas, last the store."""
        self._console.step("stopping")
        self._document_path.unlink(missing_ok=True)
        first = ("autoscaler", "router")
        stages = (
            [child for child in self._children if child.name.startswith(first)],
            [child for child in self._children if not child.name.startswith((*first, "etcd"))],
            [child for child in self._children if child.name == "etcd"],
        )
        work = asyncio.create_task(self._stop_stages(stages))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((work, hurry), return_when=asyncio.FIRST_COMPLETED)
        for task in (work, hurry):
            task.cancel()
        # After a second signal nothing more is waited for: the sweep kills what is left.
        await leftovers.sweep(0.0 if self._hurry.is_set() else SWEEP_GRACE_S, self._own_pids)
        leftovers.remove_shared_memory()
        for held in self._held:
            held.close()
        self._console.step("stopped")

    async def _stop_stages(self, stages: Iterable[list[Child]]) -> None:
        for number, stage in enumerate(stages):
            async with asyncio.TaskGroup() as tasks:
                for child in stage:
                    tasks.create_task(child.stop(STOP_GRACE_S))
                if number == 1:
                    tasks.create_task(leftovers.stop_replicas(self._site))


async def _silent(api: demo.AdminApi) -> list[str]:
    """Names the control plane while its admin API does not answer."""
    try:
        await api.call("ListModels", admin_pb2.ListModelsRequest())
    except (UnavailableError, DeadlineExceededError) as error:
        return [f"control-plane-1 ({error.message})"]
    except FairleadError as error:
        raise StartError(f"the admin API refuses the launcher: {error.message}") from error
    return []


def _first(group: BaseExceptionGroup[StartError]) -> StartError:
    """The first of several start errors: the others are usually its consequences."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
