"""The relay's server over TLS, with and without clients' certificates."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest
import trustme

from data_plane.relay.server import ServerLimits
from data_plane.relay.tls import server_context
from fairlead.errors import InvalidArgumentError
from tests.support.waiting import eventually
from tests.unit.relay.server.serving import failed, path, serving

LARGE = (("grpc.max_receive_message_length", 16 << 20),)


@dataclass
class Files:
    """Where the certificates are, and who trusts whom."""

    certificate: str
    key: str
    client_ca: str
    root: bytes
    client_key: bytes
    client_chain: bytes
    stranger_key: bytes
    stranger_chain: bytes


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    ours, clients, strangers = trustme.CA(), trustme.CA(), trustme.CA()
    server = ours.issue_cert("localhost", "127.0.0.1")
    client, stranger = clients.issue_cert("client.test"), strangers.issue_cert("stranger.test")

    def written(name: str, *blobs: trustme.Blob) -> str:
        target = Path(folder / name)
        target.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return str(target)

    return Files(
        written("server.pem", *server.cert_chain_pems),
        written("server.key", server.private_key_pem),
        written("clients.pem", clients.cert_pem),
        ours.cert_pem.bytes(),
        client.private_key_pem.bytes(),
        client.cert_chain_pems[0].bytes(),
        stranger.private_key_pem.bytes(),
        stranger.cert_chain_pems[0].bytes(),
    )


def at(port: int) -> str:
    return f"localhost:{port}"


async def test_calls_over_tls(files: Files) -> None:
    """Proves answers of all sizes, and that a client that trusts somebody else gets none."""
    tls = server_context(files.certificate, files.key)
    async with serving(tls=tls) as served:
        trusting = grpc.ssl_channel_credentials(files.root)
        async with grpc.aio.secure_channel(at(served.port), trusting, LARGE) as channel:
            message = 1_000_000 * b"x"
            assert await channel.unary_unary(path("Once"))(b"hello", timeout=20) == b"hello"
            answers = [answer async for answer in channel.unary_stream(path("Thrice"))(message, timeout=20)]
            assert answers == 3 * [message]
        distrusting = grpc.ssl_channel_credentials(files.client_chain)
        async with grpc.aio.secure_channel(at(served.port), distrusting) as channel:
            error = await failed(channel.unary_unary(path("Once"))(b"hello", timeout=20))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert served.server.gate.handshakes_failed >= 1


async def test_clients_must_say_who_they_are(files: Files) -> None:
    """Proves that a client without a certificate, or with a stranger's, reaches nothing."""
    tls = server_context(files.certificate, files.key, client_ca_file=files.client_ca)
    async with serving(tls=tls) as served:
        known = grpc.ssl_channel_credentials(files.root, files.client_key, files.client_chain)
        async with grpc.aio.secure_channel(at(served.port), known) as channel:
            assert await channel.unary_unary(path("Once"))(b"hello", timeout=20) == b"hello"
        for wrong in (
            grpc.ssl_channel_credentials(files.root),
            grpc.ssl_channel_credentials(files.root, files.stranger_key, files.stranger_chain),
        ):
            async with grpc.aio.secure_channel(at(served.port), wrong) as channel:
                error = await failed(channel.unary_unary(path("Once"))(b"hello", timeout=20))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert len(served.seen) == 1


async def test_the_own_port_is_plain(files: Files) -> None:
    tls = server_context(files.certificate, files.key)
    async with (
        serving(tls=tls, own_port=True) as served,
        grpc.aio.insecure_channel(served.server.own_address) as channel,
    ):
        assert await channel.unary_unary(path("Once"))(b"hello", timeout=20) == b"hello"


def _trusting(files: Files, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=files.root.decode())
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)])
async def test_who_does_not_speak_h2_is_closed(files: Files, protocols: tuple[str, ...]) -> None:
    tls = server_context(files.certificate, files.key)
    async with serving(tls=tls) as served, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.port, ssl=_trusting(files, *protocols), server_hostname="localhost"
        )
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        await eventually(lambda: served.server.gate.open == 0)
        assert served.server.gate.handshakes_failed == 1


async def test_handshakes_count_and_end(files: Files) -> None:
    """Proves that whoever only begins a handshake takes up a connection, and for a bounded time."""
    tls = server_context(files.certificate, files.key)
    limits = ServerLimits(connections_max=1, handshake_s=0.5)
    async with serving(limits, tls=tls) as served, asyncio.timeout(20):
        silent = socket.create_connection(("127.0.0.1", served.port))
        await eventually(lambda: served.server.gate.open == 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert served.server.gate.turned_away == 1
        await eventually(lambda: served.server.gate.open == 0)
        assert served.server.gate.handshakes_failed == 1
        silent.close()
        trusting = grpc.ssl_channel_credentials(files.root)
        async with grpc.aio.secure_channel(at(served.port), trusting) as channel:
            assert await channel.unary_unary(path("Once"))(b"there is room", timeout=20) == b"there is room"


async def test_a_drain_breaks_handshakes_off(files: Files) -> None:
    tls = server_context(files.certificate, files.key)
    async with serving(tls=tls) as served, asyncio.timeout(20):
        silent = socket.create_connection(("127.0.0.1", served.port))
        await eventually(lambda: served.server.gate.open == 1)
        await served.server.drain_and_stop(0.2)
        assert served.server.gate.open == 0
        silent.close()


def test_files_that_are_not_there(files: Files, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"missing\.pem"):
        server_context(str(tmp_path / "missing.pem"), files.key)
    with pytest.raises(InvalidArgumentError, match=r"server\.pem"):
        server_context(files.certificate, files.certificate)
    with pytest.raises(InvalidArgumentError, match=r"server\.key"):
        server_context(files.certificate, files.key, client_ca_file=files.key)
