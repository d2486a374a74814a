"""Service processes for tests, born with other people's libraries loaded: three quarters of a start are those.

A nursery is a process that has imported what services take from elsewhere, and nothing of ours. Asked for a service it
forks, and the child goes on as `python -m MODULE` would: it imports our modules by itself, compiled ones where a router
does, and ends as any interpreter. How services start from nothing is in the end-to-end and fault tests.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Final, Protocol

CHECKOUT: Final = Path(__file__).resolve().parents[2]
LIBRARIES: Final = (
    "aetcd",
    "aiohttp.web",
    "google.protobuf.json_format",
    "grpc.aio",
    "grpc_health.v1.health",
    "grpc_reflection.v1alpha.reflection",
    "msgspec",
    "numpy",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "opentelemetry.sdk.trace.export",
    "prometheus_client",
    "uvloop",
)
"""What takes most of the time to load; one that no service asks for any more costs nothing but that."""

_REQUEST_BYTES_MAX: Final = 1 << 17


class HasFile(Protocol):
    """Something that is written to a file."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...


class ServiceProcess:
    """A service's process, as subprocess.Popen would have it.

    Args:
        module: What `python -m` would run.
        arguments: Its command line.
        stderr: Where its log goes.

    Attributes:
        pid: Its id.
        returncode: How it ended, as far as anybody has asked; the negative number of a signal.
    """

    def __init__(self, module: str, arguments: list[str], *, stderr: HasFile) -> None:
        self._module = module
        self._ended, end = os.pipe()
        weakref.finalize(self, os.close, self._ended)
        self._reading = threading.Lock()
        self.returncode: int | None = None
        request = json.dumps([module, arguments, dict(os.environ)]).encode()
        nursery = _nursery()
        socket.send_fds(nursery, [request], [stderr.fileno(), end])
        os.close(end)
        self.pid = int(nursery.recv(16))

    def wait(self, timeout: float | None = None) -> int:
        """Returns how it ended.

        Raises:
            subprocess.TimeoutExpired: It did not within `timeout` seconds.
        """
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        if self.returncode is None and not poll.poll(None if timeout is None else 1_000 * timeout):
            raise subprocess.TimeoutExpired(self._module, timeout or 0.0)
        with self._reading:
            if self.returncode is None:
                self.returncode = int(os.read(self._ended, 16))
        return self.returncode

    def poll(self) -> int | None:
        """How it ended; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _nursery() -> socket.socket:
    """The way to this process's nursery, which ends with it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, "-m", __name__, str(its.fileno())]
        process = subprocess.Popen(command, cwd=CHECKOUT, pass_fds=[its.fileno()])
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _born(asked: socket.socket) -> str | None:
    """Serves the process that is at the other end until it is gone.

    Returns:
        In each child, the module that it shall run; in the nursery itself, None.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everybody, and children are still to be ended
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    ends: dict[int, tuple[int, int]] = {}  # id and way to the one who waits for its end, by descriptor of the process
    while True:
        for ready, _ in poll.poll():
            if ready in ends:
                poll.unregister(ready)
                pid, end = ends.pop(ready)
                os.write(end, str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
                os.close(end)
                os.close(ready)
                continue
            request, files, *_ = socket.recv_fds(asked, _REQUEST_BYTES_MAX, 2)
            if not request:
                return None
            log, end = files
            pid = os.fork()
            if not pid:
                return _become(request, asked, log, [end, *ends, *(other for _, other in ends.values())])
            started = os.pidfd_open(pid)
            poll.register(started, select.POLLIN)
            ends[started] = pid, end
            os.close(log)
            asked.send(str(pid).encode())


def _become(request: bytes, asked: socket.socket, log: int, others: list[int]) -> str:
    """Makes a child what was asked for; returns the module that it shall run.

    Args:
        request: What was asked for.
        asked: The nursery's way to the one who asked.
        log: Where standard error goes.
        others: Descriptors that are the nursery's alone.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked.close()
    os.dup2(log, sys.stderr.fileno())
    for other in (log, *others):
        os.close(other)
    module, arguments, environ = json.loads(request)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[1:] = arguments
    return str(module)


def main() -> None:
    """See the module; the one argument is the socket's descriptor."""
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    module = _born(socket.socket(fileno=int(sys.argv[1])))
    if module is not None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
