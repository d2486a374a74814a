"""Stands between an agent and its tritonserver, so that nothing is left behind however either of them ends.

    python -I guard.py --shm-prefix P --grace-s 5 -- tritonserver ...

- Its standard input is a pipe from the agent: when that closes, the agent is gone and tritonserver is ended.
- SIGTERM: tritonserver gets SIGTERM, and SIGKILL with all its children after the grace time.
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


def remove_shared_memory(prefix: str) -> None:
    """Removes the shared memory regions whose names begin with `prefix`."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    guard = os.getpid()

    def die_with_guard() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)

    return subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=die_with_guard)


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it stays a zombie, so that its process group id cannot be given to anyone else."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _watch(server: subprocess.Popen[bytes], wakeup: int, grace_s: float) -> None:
    """Returns once tritonserver has ended, having ended it where the agent is gone or SIGTERM came."""
    with selectors.DefaultSelector() as selector:
        selector.register(wakeup, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        kill_at: float | None = None
        while not _has_ended(server.pid):
            patience = None if kill_at is None else max(0.0, kill_at - time.monotonic())
            stop = False
            for key, _ in selector.select(patience):
                data = os.read(key.fd, 4096)
                if key.fd != wakeup and not data:
                    selector.unregister(key.fd)
                stop = stop or (signal.SIGTERM in data if key.fd == wakeup else not data)
            if stop and kill_at is None:
                os.kill(server.pid, signal.SIGTERM)
                os.kill(server.pid, signal.SIGCONT)  # a frozen one cannot end by itself
                kill_at = time.monotonic() + grace_s
            if kill_at is not None and time.monotonic() >= kill_at:
                os.killpg(server.pid, signal.SIGKILL)
                kill_at = float("inf")


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
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    wakeup, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wakeup_write)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    server = _start(command)
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    _watch(server, wakeup, options.grace_s)
    os.killpg(server.pid, signal.SIGKILL)
    status = server.wait()
    _reap_orphans()
    remove_shared_memory(options.shm_prefix)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
