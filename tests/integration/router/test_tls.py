"""A router whose doors are encrypted: the SDK and OpenAI's client over TLS, and who is not let in."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc
import pytest
import pytest_asyncio
import trustme

from fairlead import AsyncClient
from fairlead.errors import FairleadError, UnavailableError
from fairlead.sdk.settings import Tls
from tests.integration.router.processes import MODEL, Platform, RouterProcess, platform
from tests.support.etcd import EtcdServer
from tests.support.router_lab import KEY
from tests.support.waiting import eventually

pytestmark = [pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]


class Papers:
    """An authority, the router's certificate and a client's."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.folder = folder
        self.ca_file = self._write("ca.pem", self.authority.cert_pem.bytes())
        for name, certificate in (
            ("server", self.authority.issue_cert("localhost", "127.0.0.1")),
            ("client", self.authority.issue_cert("client.example")),
        ):
            self._write(f"{name}.pem", b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
            self._write(f"{name}-key.pem", certificate.private_key_pem.bytes())

    def path(self, name: str) -> str:
        """Of one of the files."""
        return str(self.folder / name)

    def _write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def context(self) -> ssl.SSLContext:
        """For a client of HTTP."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.load_cert_chain(self.path("client.pem"), self.path("client-key.pem"))
        return context


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Platform, Papers]]:
    folder = tmp_path_factory.mktemp("tls")
    etcd = EtcdServer(folder)
    etcd.start()
    try:
        async with platform(etcd, folder) as made:
            made.start_quota()
            made.start_agent("agent-1")
            await made.wait_replicas(1)
            yield made, Papers(folder)
    finally:
        etcd.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(world: tuple[Platform, Papers]) -> RouterProcess:
    made, papers = world
    router = made.start_router(
        "router-1",
        *("--tls-certificate-file", papers.path("server.pem"), "--tls-key-file", papers.path("server-key.pem")),
        *("--tls-client-ca-file", papers.path("ca.pem")),
    )
    await router.wait_ready()
    return router


def client(router: RouterProcess, tls: Tls | bool) -> AsyncClient:
    return AsyncClient(router.grpc_address.replace("127.0.0.1", "localhost"), api_key=KEY, tls=tls)


async def answered(papers: Papers, router: RouterProcess) -> bool:
    tls = Tls(papers.ca_file, papers.path("client.pem"), papers.path("client-key.pem"))
    try:
        async with client(router, tls) as fairlead:
            text = (await fairlead.generate("Once", model=MODEL, max_tokens=8)).text
            pieces = [piece async for piece in fairlead.stream_generate("Once", model=MODEL, max_tokens=8)]
            return bool(text) and len(pieces) > 1
    except UnavailableError:
        return False  # its first lease is still to come


async def test_the_sdk_over_mutual_tls(world: tuple[Platform, Papers], router: RouterProcess) -> None:
    """With the authority and a certificate of its own, a client is served as ever."""
    await eventually(lambda: answered(world[1], router), 15.0, "an answer over TLS")


async def test_http_over_mutual_tls(world: tuple[Platform, Papers], router: RouterProcess) -> None:
    """The HTTP door speaks TLS as well, with the same papers."""
    await eventually(lambda: answered(world[1], router), 15.0, "an answer over TLS")
    url = router.http_url.replace("http://127.0.0.1", "https://localhost") + "/v1/models"
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session,
        session.get(url, ssl=world[1].context()) as answer,
    ):
        assert answer.status == 200
        assert [model["id"] for model in (await answer.json())["data"]] == [MODEL]


async def test_who_has_no_certificate_or_speaks_plain_text_is_not_let_in(
    world: tuple[Platform, Papers], router: RouterProcess
) -> None:
    """No certificate, one of a stranger, or no TLS at all: nobody is answered, and serving goes on."""
    stranger = trustme.CA().issue_cert("client.example")
    files = {"chain": stranger.cert_chain_pems[0].bytes(), "key": stranger.private_key_pem.bytes()}
    for name, content in files.items():
        (world[1].folder / f"stranger-{name}.pem").write_bytes(content)
    for tls in (
        Tls(world[1].ca_file),
        Tls(world[1].ca_file, world[1].path("stranger-chain.pem"), world[1].path("stranger-key.pem")),
        False,
    ):
        async with client(router, tls) as fairlead:
            with pytest.raises(FairleadError):
                await fairlead.generate("Once", model=MODEL, max_tokens=8, deadline_s=3.0)
    with pytest.raises(grpc.RpcError):
        grpc.insecure_channel(router.grpc_address).unary_unary("/x.Y/Z")(b"", timeout=3.0)
    assert await answered(world[1], router)
    assert await router.metric("fairlead_router_handshakes_failed_total") >= 2


async def test_settings_that_do_not_fit_together_are_said_at_the_start(world: tuple[Platform, Papers]) -> None:
    """A certificate without its key, or a file that is none, ends the start with a word on what to do."""
    made, papers = world
    for arguments, word in (
        (("--tls-certificate-file", papers.path("server.pem")), "set both"),
        (("--tls-certificate-file", papers.path("server.pem"), "--tls-key-file", papers.path("pepper")), "certificate"),
    ):
        process = made.start_router("router-wrong", *arguments)
        assert await process.stopped() == 1
        assert word in process.log_path.read_text()
