"""What passes between supervisor and workers, the metrics page of all, and the sockets."""

from __future__ import annotations

import socket

import pytest

from data_plane.supervisor.listening import Listening
from data_plane.supervisor.metrics import merged
from data_plane.supervisor.wire import LINE_BYTES_MAX, Inherited, Lines
from fairlead.errors import InvalidArgumentError


def test_lines_come_whole_however_the_bytes_do() -> None:
    """Cut anywhere, the words are the same; empty lines say nothing."""
    text = b"alive\nready 127.0.0.1:40123\n\naccept 0 2\n"
    lines = Lines()
    assert [words for byte in text for words in lines.feed(bytes([byte]))] == Lines().feed(text)
    assert Lines().feed(text) == [[b"alive"], [b"ready", b"127.0.0.1:40123"], [b"accept", b"0", b"2"]]


def test_a_line_without_an_end_is_refused() -> None:
    """What fills the memory is not waited for."""
    lines = Lines()
    assert lines.feed(b"x" * LINE_BYTES_MAX) == []
    with pytest.raises(InvalidArgumentError):
        lines.feed(b"x")


def test_what_a_worker_inherits_survives_the_environment() -> None:
    """And nonsense in the variable is refused by name."""
    given = Inherited(1, "router-1", True, 9, (3, 4), (5, 6))
    assert Inherited.decode(given.encode()) == given
    for nonsense in ("7", "{", '{"slot": "x"}'):
        with pytest.raises(InvalidArgumentError, match="FAIRLEAD_ROUTER_WORKER"):
            Inherited.decode(nonsense)


def test_pages_are_merged_by_family() -> None:
    """Each family once, its samples together, told apart by the worker; values that hold braces and spaces stay."""
    head = "# HELP a_total What, in words.\n# TYPE a_total counter\n"
    first = head + 'a_total{x="{ }"} 1.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    second = head + 'a_total{x="y"} 3.0\n'
    assert merged({"": "# HELP own O.\n# TYPE own gauge\nown 0.0\n", "1": first, "2b": second}) == (
        "# HELP own O.\n# TYPE own gauge\nown 0.0\n"
        + head
        + 'a_total{worker="1",x="{ }"} 1.0\na_total{worker="2b",x="y"} 3.0\n'
        + '# HELP b B.\n# TYPE b gauge\nb{worker="1"} 2.0\n'
    )


def test_sockets_share_one_free_port_and_wait_to_listen() -> None:
    """Port 0 is one port for all; nobody is let in before a worker listens, and each socket gets its own."""
    opened = Listening("http_port", "127.0.0.1", 0, 3)
    try:
        assert {each.getsockname()[1] for each in opened.sockets} == {opened.port}
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", opened.port), timeout=5)
        for each in opened.sockets:
            each.listen()
        clients = [socket.create_connection(("127.0.0.1", opened.port), timeout=5) for _ in range(60)]
        taken = [accepted(each) for each in opened.sockets]
        assert sum(taken) == 60
        assert min(taken) > 0
        for client in clients:
            client.close()
    finally:
        opened.close()


def accepted(listening: socket.socket) -> int:
    count = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_a_taken_port_is_named_with_its_setting() -> None:
    """By somebody who does not share it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidArgumentError, match=rf"127\.0\.0\.1:{port} .*Set grpc_port"):
            Listening("grpc_port", "127.0.0.1", port, 2)
