"""Ports of the local platform: chosen, held, and explained when they are taken."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from deploy.local.console import StartError
from deploy.local.options import Options
from deploy.local.ports import choose_ports, hold


def options(http: int = 0, grpc: int = 0, admin: int = 0) -> Options:
    return Options("sim", 1, http, grpc, admin, 0, 0.0, Path("unused"))


def listener() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def test_zero_takes_free_and_different_ports() -> None:
    """0 means any: three ports, all different."""
    ports = choose_ports(options())
    assert len({ports.http, ports.grpc, ports.admin}) == 3


def test_taken_port_is_named_with_its_holder_and_the_way_out() -> None:
    """The message names the port, its variable, the process that has it where that can be known, and what to type."""
    with listener() as sock:
        port = sock.getsockname()[1]
        with pytest.raises(StartError) as refusal:
            choose_ports(options(grpc=port))
    text = str(refusal.value)
    assert f"Port {port} (GRPC_PORT) is taken" in text
    assert "make run HTTP_PORT=" in text
    assert "GRPC_PORT=0" in text
    if sys.platform == "linux":
        assert f"(process {os.getpid()})" in text


def test_every_taken_port_is_named_at_once() -> None:
    """Two taken ports are two lines, not two attempts."""
    with listener() as one, listener() as two:
        taken = one.getsockname()[1], two.getsockname()[1]
        with pytest.raises(StartError) as refusal:
            choose_ports(options(http=taken[0], admin=taken[1]))
    assert all(f"Port {port} " in str(refusal.value) for port in taken)


def test_same_port_twice_is_refused() -> None:
    """Two services cannot have one port."""
    with pytest.raises(StartError, match="must differ"):
        choose_ports(options(http=18080, grpc=18080))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux leaves a silent socket out of the sharing")
def test_held_port_can_be_shared_and_gets_no_connection() -> None:
    """While the port is held, those who share it can listen, and every connection reaches them."""
    port = choose_ports(options()).http
    held = hold(port)
    assert held is not None
    with held, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                server.accept()[0].close()
        with pytest.raises(StartError):
            choose_ports(options(http=port))
