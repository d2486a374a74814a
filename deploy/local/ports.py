"""Finds and keeps the ports the platform serves on, and says who has them when they are taken."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.local.console import StartError
from deploy.local.options import Options

HOST = "127.0.0.1"
_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one run."""

    http: int
    grpc: int
    admin: int


def choose_ports(options: Options) -> Ports:
    """Checks the wanted ports and picks free ones where any will do.

    Raises:
        StartError: A wanted port is taken; the message says which, by whom where that can be known, and what to do.
    """
    wanted = {"HTTP_PORT": options.http_port, "GRPC_PORT": options.grpc_port, "ADMIN_PORT": options.admin_port}
    given = [port for port in wanted.values() if port]
    if len(set(given)) != len(given):
        raise StartError(f"HTTP_PORT, GRPC_PORT and ADMIN_PORT must differ, not {', '.join(map(str, given))}.")
    problems = [_taken(port, name) for name, port in wanted.items() if port and not _bindable(port)]
    if problems:
        choices = " ".join(f"{name}={port and port + 1000}" for name, port in wanted.items())
        free = "HTTP_PORT=0 GRPC_PORT=0 ADMIN_PORT=0"
        problems.append(f"Free it, or choose others: make run {choices}  (0 takes any free port: make run {free})")
        raise StartError("\n".join(problems))
    fresh = iter(free_ports(3))
    return Ports(*(port or next(fresh) for port in wanted.values()))


def free_ports(count: int) -> list[int]:
    """Returns ports that were free, and different, a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def hold(port: int) -> socket.socket | None:
    """Keeps a port for those who share it with SO_REUSEPORT, while none of them listens.

    Only Linux leaves a bound socket that does not listen out of the sharing; elsewhere nothing is held.
    """
    if sys.platform != "linux":
        return None
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((HOST, port))
    return held


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _taken(port: int, name: str) -> str:
    if port < 1024 and not _listeners(port):
        return f"Port {port} ({name}) cannot be used by this user."
    who = _holder(port)
    return f"Port {port} ({name}) is taken{f' by {who}' if who else ''}."


def _holder(port: int) -> str:
    """Who listens on a port, as "name (process N)"; empty where that cannot be known."""
    if Path("/proc/net/tcp").exists():
        return _holder_from_proc(port)
    if shutil.which("lsof"):
        command = ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"]
        fields = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        named = {field[0]: field[1:] for field in reversed(fields)}
        return f"{named['c']} (process {named['p']})" if {"c", "p"} <= named.keys() else ""
    return ""


def _listeners(port: int) -> set[str]:
    """Socket inodes that listen on a port."""
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if table.exists():
            for row in table.read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes


def _holder_from_proc(port: int) -> str:
    sockets = {f"socket:[{inode}]" for inode in _listeners(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(link.readlink()) in sockets for link in process.joinpath("fd").iterdir()):
                return f"{process.joinpath('comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue
    return ""
