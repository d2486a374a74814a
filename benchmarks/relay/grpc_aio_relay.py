"""The best a relay on grpc.aio can do, as a rival: raw bytes, uvloop, no policy, nothing to collect.

python -m benchmarks.relay.grpc_aio_relay PORT UPSTREAM_ADDRESS...
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc
import grpc.aio
import uvloop

_OPTIONS: Final = (("grpc.max_concurrent_streams", 100_000), ("grpc.use_local_subchannel_pool", 1))
_UNARY: Final = "/Generate"


class Relay(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Passes every call on as it came, round robin."""

    def __init__(self, upstreams: Sequence[str]) -> None:
        self._turn = itertools.cycle([grpc.aio.insecure_channel(each, options=_OPTIONS) for each in upstreams])

    def service(self, handler_call_details: Any) -> Any:
        """See grpc."""
        method = handler_call_details.method

        async def unary(request: bytes, _: Any) -> bytes:
            answer: bytes = await next(self._turn).unary_unary(method, None, None)(request)
            return answer

        async def stream(request: bytes, _: Any) -> AsyncIterator[bytes]:
            async for message in next(self._turn).unary_stream(method, None, None)(request):
                yield message

        if method.endswith(_UNARY):
            return grpc.unary_unary_rpc_method_handler(unary)
        return grpc.unary_stream_rpc_method_handler(stream)


async def _serve(port: int, upstreams: Sequence[str]) -> None:
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((Relay(upstreams),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    gc.collect()
    gc.freeze()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2:]))
