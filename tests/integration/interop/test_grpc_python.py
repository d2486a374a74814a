"""grpcio's synchronous client, reflection and Triton's client against the relay's server, each from its own threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from data_plane.relay.grpc.limits import CallLimits
from data_plane.relay.http2.limits import Limits
from data_plane.relay.server import ServerLimits
from fairlead.errors import InternalError, Reason, from_rpc_error
from tests.integration.interop.grpc_server import HOSTED, INTEROP, KSERVE, interop
from tests.integration.relay_defence.calls import ONCE, begin
from tests.integration.relay_defence.peer import Peer, data
from tests.support.waiting import eventually
from tests.unit.relay.server.serving import REFUSAL, SERVICE, path

CALL_S = 60.0
STREAMS = 1_000


async def in_threads(work: Any, *arguments: Any) -> Any:
    """Runs a client beside the server's loop."""
    return await asyncio.to_thread(work, *arguments)


async def test_grpcio_by_threads() -> None:
    """Proves calls of every kind and end, one after the other on one connection."""

    def ask(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            once = channel.unary_unary(path("Once"))
            assert once(b"hello", timeout=CALL_S) == b"hello"
            large = bytes(range(256)) * 16_000
            assert once(large, timeout=CALL_S) == large
            assert list(channel.unary_stream(path("Thrice"))(b"a", timeout=CALL_S)) == 3 * [b"a"]
            count = channel.unary_stream(f"/{INTEROP}/Count")
            assert sum(1 for _ in count(b"3000", timeout=CALL_S)) == 3_000
            both = channel.stream_stream(f"/{HOSTED}/Both")
            assert list(both(iter((b"1", b"2")), timeout=CALL_S)) == [b"heard 1", b"heard 2"]
            assert channel.stream_unary(f"/{HOSTED}/Collect")(iter(100 * [10_000 * b"x"]), timeout=CALL_S) == b"1000000"

    async with interop() as served:
        await in_threads(ask, served.address)
        assert served.server.gate.open <= 1


async def test_metadata_and_trailers() -> None:
    def ask(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            sent = (("x-tenant", "t"), ("x-bytes-bin", b"\0\xff\7"))
            answer, call = channel.unary_unary(f"/{INTEROP}/Metadata").with_call(b"", metadata=sent, timeout=CALL_S)
            assert b'"x-tenant": "t"' in answer
            assert b"AP8H" in answer
            assert call.trailing_metadata() == (("x-last", "last"),)
            assert call.code() is grpc.StatusCode.OK

    async with interop() as served:
        await in_threads(ask, served.address)


@pytest.mark.parametrize("method", ["Fail", "FailLate"])
async def test_an_error_with_its_details(method: str) -> None:
    def ask(address: str) -> None:
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream(path(method))(b"a", timeout=CALL_S))
        error = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == REFUSAL.message
        status = rpc_status.from_call(error)
        assert status is not None
        assert len(status.details) >= 2
        assert from_rpc_error(error).reason is Reason.QUOTA_USED_UP

    async with interop() as served:
        await in_threads(ask, served.address)


async def test_an_error_whose_text_is_as_long_as_it_gets() -> None:
    """Proves that no error is so large that a client cannot take its trailers: their usual limit is 8 KiB."""

    def ask(address: str) -> None:
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Long/Fail")(b"a", timeout=CALL_S)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert caught.value.details().startswith("ä€")

    def refuses(_call: Any) -> Any:
        raise InternalError(20_000 * "ä€")

    async with interop() as served:
        served.server.serve("test.Long", {"Fail": refuses})
        await in_threads(ask, served.address)


async def test_deadlines_and_cancellation() -> None:
    def ask(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            silence = channel.unary_unary(path("Silence"))
            with pytest.raises(grpc.RpcError) as caught:
                silence(b"", timeout=0.3)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            call = silence.future(b"", timeout=CALL_S)
            threading.Timer(0.3, call.cancel).start()
            with pytest.raises(grpc.FutureCancelledError):
                call.result()

    async with interop() as served:
        await in_threads(ask, served.address)
        await eventually(lambda: [each.gone for each in served.seen] == [1, 1])


async def test_a_thousand_streams_on_one_connection_and_one_more() -> None:
    """Proves that as many as allowed are open at once, and that a client keeps the one beyond until there is room."""
    limits = ServerLimits(connection=Limits(streams_max=STREAMS))

    async with interop(limits) as served, grpc.aio.insecure_channel(served.address) as channel:
        silence = channel.unary_unary(path("Silence"))
        calls = [silence(b"", timeout=CALL_S) for _ in range(STREAMS)]
        await eventually(lambda: sum(each.half_closed for each in served.seen) == STREAMS, CALL_S)
        late = asyncio.ensure_future(channel.unary_unary(path("Once"))(b"late", timeout=CALL_S))
        calls.pop().cancel()
        assert await late == b"late"
        assert served.server.gate.open == 1
        for call in calls:
            call.cancel()
        await eventually(lambda: sum(each.gone for each in served.seen) == STREAMS, CALL_S)


async def test_compression_is_refused_as_the_protocol_says() -> None:
    """Proves UNIMPLEMENTED and the list of what is taken, and that a client which may compress need not."""

    def ask(address: str) -> None:
        with grpc.insecure_channel(address, compression=grpc.Compression.Gzip) as channel:
            call = channel.unary_unary(path("Once")).future(10_000 * b"x", timeout=CALL_S)
            assert call.code() is grpc.StatusCode.UNIMPLEMENTED
            once = channel.unary_unary(path("Once"))
            assert once(b"plain", timeout=CALL_S, compression=grpc.Compression.NoCompression) == b"plain"

    async with interop() as served:
        await in_threads(ask, served.address)
        # grpcio keeps the list to itself.
        peer = await Peer.greeted(served.port)
        await peer.send(begin(1, ONCE) + data(1, b"\1\0\0\0\5token", ended=True))
        assert await peer.answered(1)
        assert peer.fields(1)[b"grpc-status"] == b"12"
        assert peer.fields(1)[b"grpc-accept-encoding"] == b"identity"
        await peer.close()


async def test_reflection_tells_what_there_is() -> None:
    """Proves that a client which knows no descriptors finds a method and calls it, as grpcurl does."""

    def ask(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert {SERVICE, INTEROP, HOSTED, KSERVE} <= set(database.get_services())
            service = descriptor_pool.DescriptorPool(database).FindServiceByName(KSERVE)
            method = service.FindMethodByName("ServerLive")
            assert (method.input_type.name, method.output_type.name) == ("ServerLiveRequest", "ServerLiveResponse")
            assert channel.unary_unary(f"/{KSERVE}/{method.name}")(b"", timeout=CALL_S) == b"\x08\x01"

    async with interop() as served:
        await in_threads(ask, served.address)


async def test_tritons_client() -> None:
    """Proves liveness, a request of 2 MB and its answer, and a stream of requests."""

    def ask(address: str) -> None:
        with triton.InferenceServerClient(address) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            numbers = np.arange(500_000, dtype=np.int32)
            assert (client.infer("m", [_tensor(numbers)]).as_numpy("out") == numbers).all()
            answers: list[Any] = []
            came = threading.Semaphore(0)

            def on_answer(result: Any, error: Any) -> None:
                answers.append((result, error))
                came.release()

            client.start_stream(on_answer)
            for _ in range(10):
                client.async_stream_infer("m", [_tensor(numbers[:100])])
            for _ in range(30):
                assert came.acquire(timeout=CALL_S)
            client.stop_stream()
            assert all(error is None and (result.as_numpy("out") == numbers[:100]).all() for result, error in answers)

    async with interop() as served:
        await in_threads(ask, served.address)


def _tensor(numbers: Any) -> Any:
    tensor = triton.InferInput("in", list(numbers.shape), "INT32")
    tensor.set_data_from_numpy(numbers)
    return tensor


async def test_messages_at_the_limit_and_one_byte_more() -> None:
    most = 100_000

    def ask(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            once = channel.unary_unary(path("Once"))
            assert len(once(most * b"x", timeout=CALL_S)) == most
            with pytest.raises(grpc.RpcError) as caught:
                once((most + 1) * b"x", timeout=CALL_S)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async with interop(ServerLimits(calls=CallLimits(message_bytes_max=most))) as served:
        await in_threads(ask, served.address)
