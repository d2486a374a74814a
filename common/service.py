"""How every service process begins and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, TypeVar, cast

import uvloop

from common import logs
from common.config import CommonConfig, describe, load_config
from fairlead.errors import FairleadError

log = logs.get_logger(__name__)
C = TypeVar("C", bound=CommonConfig)
Serve = Callable[[C, asyncio.Event], Awaitable[None]]


def run_service(name: str, config_class: type[C], serve: Serve[C]) -> int:
    """Reads the settings and runs a service until SIGTERM, SIGINT or the end of its supervisor.

    Args:
        name: Service name, for settings and the log.
        config_class: Its settings; logged once, secrets hidden.
        serve: Serves until the event it is given is set, then drains and returns.

    Returns:
        Exit code: 0 after an orderly end; 1 after an error, which is logged with what to do; 2 for bad settings.
    """
    try:
        config = load_config(config_class, name, sys.argv[1:])
    except FairleadError as error:
        sys.stderr.write(f"{name}: {error.message}\n")
        return 2
    logs.configure(config.log_level, cast(Literal["text", "json"], config.log_format))
    log.info("starting", service=name, pid=os.getpid(), **describe(config))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(lambda stop: serve(config, stop), config.supervisor_pid))
    except (FairleadError, ExceptionGroup) as failure:
        for leaf in _leaves(failure):
            if not isinstance(leaf, FairleadError):
                raise
            log.error("cannot serve", service=name, reason=leaf.reason.value, error=leaf.message)
        return 1
    log.info("stopped", service=name)
    return 0


def _leaves(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        return [leaf for child in error.exceptions for leaf in _leaves(child)]
    return [error]


async def _serve(main: Callable[[asyncio.Event], Awaitable[None]], supervisor_pid: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watcher = asyncio.create_task(_watch_supervisor(supervisor_pid, stop)) if supervisor_pid else None
    try:
        await main(stop)
    finally:
        if watcher is not None:
            watcher.cancel()


async def _watch_supervisor(pid: int, stop: asyncio.Event) -> None:
    """Sets `stop` when the supervising process is gone, then leaves for good if draining takes too long."""
    while _exists(pid):  # noqa: ASYNC110  # another process's end sets no event here
        await asyncio.sleep(1.0)
    log.warning("supervisor gone", supervisor_pid=pid)
    stop.set()
    await asyncio.sleep(10.0)
    sys.stderr.flush()
    os._exit(1)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits for a parent that does not ask, where /proc tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"
