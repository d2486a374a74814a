"""The upstream that sends every request the way its replica's record says: by the agent, or past it to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from common.clock import Clock
from data_plane.relay.grpc.pool import Pool
from data_plane.relay.http1.client import HttpPool
from data_plane.relay.http2.endpoint import Patience
from data_plane.router.dialects.credentials import Credentials
from data_plane.router.dialects.openai import OpenAIUpstream
from data_plane.router.dialects.triton import TritonUpstream
from data_plane.router.upstream import Metadata, Receiver, Running, Upstream
from fairlead.engine.v1 import engine_pb2

TRITON_PATIENCE: Final = Patience(silence_s=300.0)
"""A Triton that is asked for a sign of life more often than every 300 s, while it sends nothing, ends the connection at
the third time, with all streams on it ("Too many pings"). So a frozen one is noticed by its streams' silence instead.
Source: tritonserver --grpc-http2-min-recv-ping-interval-without-data and --grpc-http2-max-ping-strikes."""


class DispatchingUpstream:
    """See data_plane.router.upstream.Upstream.

    A record with a dialect that this router does not know is older or newer than it: its agent takes requests in any
    case.

    Args:
        agents: Reaches agents.
        engines: Reaches engines, by the dialect they speak.
    """

    def __init__(self, agents: Upstream, engines: Mapping[engine_pb2.Dialect.ValueType, Upstream]) -> None:
        self._agents = agents
        self._engines = dict(engines)

    def start(
        self,
        replica: engine_pb2.Replica,
        request: bytes,
        *,
        deadline_ns: int,
        metadata: Metadata,
        receiver: Receiver,
    ) -> Running:
        """See Upstream."""
        upstream = self._engines.get(replica.dialect, self._agents) if replica.dialect else self._agents
        return upstream.start(replica, request, deadline_ns=deadline_ns, metadata=metadata, receiver=receiver)


class Engines:
    """The ways past the agents, with connections of their own.

    Args:
        clock: Monotonic time.
        credentials_file: See data_plane.router.dialects.credentials; empty for none.

    Raises:
        InvalidArgumentError: That file is wrong.
    """

    def __init__(self, clock: Clock, credentials_file: str = "") -> None:
        self._http, self._grpc = HttpPool(), Pool(patience=TRITON_PATIENCE)
        credentials = Credentials.load(Path(credentials_file)) if credentials_file else Credentials()
        self.ways: dict[engine_pb2.Dialect.ValueType, Upstream] = {
            engine_pb2.DIALECT_TRITON: TritonUpstream(self._grpc, clock),
            engine_pb2.DIALECT_OPENAI: OpenAIUpstream(self._http, credentials, clock),
        }

    async def close(self) -> None:
        """Ends every connection."""
        await self._http.close()
        await self._grpc.close()
