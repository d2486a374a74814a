"""Renders what comes in at the front doors as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from data_plane.gateway.server import HttpServer
from data_plane.relay.server import RelayServer
from data_plane.router.metrics import PREFIX


class DoorsCollector(Collector):
    """A prometheus_client collector over both doors.

    Args:
        grpc: The relay's server.
        http: The gateway's.
    """

    def __init__(self, grpc: RelayServer, http: HttpServer) -> None:
        self._grpc = grpc
        self._http = http

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        gate, tally, http = self._grpc.gate, self._grpc.tally, self._http
        yield _by_door(
            GaugeMetricFamily(PREFIX + "connections", "Connections of clients.", labels=["door"]),
            gate.open,
            http.connections,
        )
        yield _by_door(
            CounterMetricFamily(
                PREFIX + "connections_turned_away", "Connections closed at once as too many.", labels=["door"]
            ),
            gate.turned_away,
            http.turned_away,
        )
        yield _by_door(
            GaugeMetricFamily(
                PREFIX + "unfinished_bytes", "Parts of requests that wait for the rest.", labels=["door"]
            ),
            tally.waiting_bytes,
            http.bodies_bytes,
        )
        yield CounterMetricFamily(
            PREFIX + "handshakes_failed", "Connections of gRPC that ended in their handshake.", gate.handshakes_failed
        )
        yield CounterMetricFamily(
            PREFIX + "calls_malformed", "Calls of gRPC that broke a rule or named no method.", tally.refused
        )

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the doors."""
        return ()


def _by_door(family: GaugeMetricFamily | CounterMetricFamily, grpc: int, http: int) -> Metric:
    family.add_metric(["grpc"], grpc)
    family.add_metric(["http"], http)
    return family
