"""One look at the running platform, for `top`."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.duration_pb2 import Duration

from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.cli.connection import AdminConnection
from fairlead.cli.output import message_row
from fairlead.cli.quotas import read_quotas
from fairlead.engine.v1 import engine_pb2
from fairlead.engine.v1.engine_pb2_grpc import EngineServiceStub
from fairlead.errors import FailedPreconditionError, UnavailableError
from fairlead.sdk.settings import channel_options

LOAD_TIMEOUT_S = 0.5
"""An agent answers at once or is out of this machine's reach."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look."""

    capacity: list[dict[str, Any]]
    """Models as in `capacity show`, without their quotas."""
    quotas: list[dict[str, Any]]
    """As in `quota list`."""
    replicas: list[dict[str, Any]]
    """As in `replicas list`, plus `load` (a LoadReport, or None where the agent cannot be reached from here)."""
    problems: list[str]
    """What could not be asked."""


class Loads:
    """Asks the replicas' agents for their load. Keeps the channels between looks."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.Channel] = {}

    def read(self, addresses: list[str]) -> dict[str, engine_pb2.LoadReport]:
        """Asks all agents at once.

        Args:
            addresses: host:port of each agent.

        Returns:
            The load by address; an agent that cannot be reached is missing.
        """
        for gone in set(self._channels) - set(addresses):
            self._channels.pop(gone).close()
        streams = {}
        for address in addresses:
            if address not in self._channels:
                self._channels[address] = grpc.insecure_channel(address, options=channel_options(None))
            stub = EngineServiceStub(self._channels[address])
            request = engine_pb2.WatchLoadRequest(router_id="fairlead-top", interval=Duration(seconds=1))
            streams[address] = stub.WatchLoad(request, timeout=LOAD_TIMEOUT_S)
        loads = {}
        for address, stream in streams.items():
            try:
                loads[address] = next(iter(stream))
            except (grpc.RpcError, StopIteration):
                continue
            finally:
                stream.cancel()  # type: ignore[no-untyped-call]
        return loads

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            channel.close()


def look(connection: AdminConnection, loads: Loads) -> Snapshot:
    """Takes one look.

    Args:
        connection: To the control plane.
        loads: To the replicas' agents.

    Raises:
        FairleadError: The control plane itself cannot be asked.
    """
    quotas, problems = read_quotas(connection)
    capacity = []
    try:
        ledger = connection.call(connection.capacity.ListCapacity, capacity_pb2.ListCapacityRequest())
        for model in ledger.models:
            row = message_row(model)
            del row["quotas"]
            capacity.append(row)
    except (UnavailableError, FailedPreconditionError):
        pass  # read_quotas has asked the same server and said so in `problems`
    answer = connection.call(connection.admin.ListReplicas, admin_pb2.ListReplicasRequest())
    reports = loads.read([replica.address for replica in answer.replicas if replica.address])
    replicas = []
    for replica in answer.replicas:
        report = reports.get(replica.address)
        replicas.append({**message_row(replica), "load": message_row(report) if report is not None else None})
    return Snapshot(capacity, quotas, replicas, problems)
