"""Stands between an agent and its tritonserver, so that nothing is left behind however either of them ends.

    python -I guard.py --shm-prefix P --grace-s 5 --library-path L -- tritonserver ...

- Its standard input is a pipe from the agent: when that closes, the agent is gone and tritonserver is ended.
- SIGTERM: tritonserver gets SIGTERM, and SIGKILL with all its children after the grace time.
- The model's process (the stub) ended: tritonserver is killed. Left alone it would go on saying that it is ready, fail
  every new request, and leave those that were in the stub without an answer for ever.
- tritonserver ended, by itself or killed: model stubs it has orphaned are killed, its shared memory is removed.
- The guard itself was killed: the kernel kills tritonserver (PR_SET_PDEATHSIG), and the stubs notice.

It writes one line, tritonserver's process id, and ends with its exit status. Standard library only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_REAP_S = 2.0
# "triton_python_backend_stub" as the kernel cuts it; tritonserver also has a short-lived child, a shell.
_STUB_NAME = "triton_python_b"
# How often tritonserver is looked at until it has started its stub.
_STUB_POLL_S = 0.2
# A stub also ends where the model cannot be loaded; tritonserver then says why and ends by itself.
_STUB_GRACE_S = 0.5


def remove_shared_memory(prefix: str) -> None:
    """Removes the shared memory regions whose names begin with `prefix`."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


class Watch:
    """Waits for the first of: tritonserver ends, its stub ends, the agent ends, SIGTERM. Then sees the end through.

    Args:
        pid: tritonserver's process id, also that of its process group.
        wakeup: Readable when a signal has come, its number as a byte.
        grace_s: How long tritonserver may take to end after SIGTERM.
    """

    def __init__(self, pid: int, wakeup: int, grace_s: float) -> None:
        self._pid = pid
        self._wakeup = wakeup
        self._grace_s = grace_s
        self._kill_at: float | None = None
        self._stub: int | None = None

    def run(self) -> None:
        """Returns once tritonserver has ended; it is left a zombie."""
        stdin = sys.stdin.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            selector.register(stdin, selectors.EVENT_READ)
            while not _has_ended(self._pid):
                self._find_stub(selector)
                for key, _ in selector.select(self._patience()):
                    if key.fd == self._stub:
                        selector.unregister(key.fd)
                        self._end_by(_STUB_GRACE_S)
                    elif key.fd == self._wakeup:
                        if signal.SIGTERM in os.read(key.fd, 4096):
                            self._terminate()
                    elif not os.read(key.fd, 4096):
                        selector.unregister(key.fd)
                        self._terminate()
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    os.killpg(self._pid, signal.SIGKILL)
                    self._kill_at = time.monotonic() + self._grace_s

    def _find_stub(self, selector: selectors.BaseSelector) -> None:
        if self._stub is not None:
            return
        for thread in Path(f"/proc/{self._pid}/task").glob("*/children"):
            try:
                for child in thread.read_text().split():
                    if Path(f"/proc/{child}/comm").read_text().strip() == _STUB_NAME:
                        self._stub = os.pidfd_open(int(child))
                        selector.register(self._stub, selectors.EVENT_READ)
                        return
            except OSError:
                continue  # the thread or the child ended meanwhile

    def _patience(self) -> float | None:
        waits = [] if self._stub is not None else [_STUB_POLL_S]
        if self._kill_at is not None:
            waits.append(max(0.0, self._kill_at - time.monotonic()))
        return min(waits, default=None)

    def _terminate(self) -> None:
        if self._kill_at is None:
            os.kill(self._pid, signal.SIGTERM)
            os.killpg(self._pid, signal.SIGCONT)  # frozen processes cannot end by themselves
            self._end_by(self._grace_s)

    def _end_by(self, grace_s: float) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + grace_s


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _start(command: Sequence[str], library_path: str) -> subprocess.Popen[bytes]:
    guard = os.getpid()
    # Not for the guard itself, whose Python may be another build than the one Triton's stub has to load.
    environment = os.environ | {"LD_LIBRARY_PATH": library_path}

    def die_with_guard() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)

    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, process_group=0, preexec_fn=die_with_guard
    )


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it stays a zombie, so that its process group id cannot be given to anyone else."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _reap_orphans() -> None:
    """Waits for the killed stubs, which have become children of this process."""
    deadline = time.monotonic() + _REAP_S
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return


def main(argv: Sequence[str] | None = None) -> int:
    """Runs tritonserver until it ends or has to."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--shm-prefix", required=True)
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("--library-path", required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    wakeup, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wakeup_write)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    server = _start(command, options.library_path)
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    Watch(server.pid, wakeup, options.grace_s).run()
    os.killpg(server.pid, signal.SIGKILL)
    status = server.wait()
    _reap_orphans()
    remove_shared_memory(options.shm_prefix)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
