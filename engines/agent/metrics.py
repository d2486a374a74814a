"""The agent's Prometheus metrics."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from engines.agent.core.queue import Priority

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TPOT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Outcome(enum.StrEnum):
    """How a request at this replica ended: every received one ends in exactly one of these."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    QUEUE_FULL = "queue_full"
    NOT_SERVING = "not_serving"
    INVALID = "invalid"
    ENGINE_FAILED = "engine_failed"
    REPLICA_LOST = "replica_lost"
    INTERNAL = "internal"


class ProbeResult(enum.StrEnum):
    """How a probe ended; a probe overtaken by a restart has no result."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Displacement(enum.StrEnum):
    """Why a waiting request had to leave a full queue."""

    HIGHER_CLASS = "higher_class"
    """For a request of a higher class."""
    FAIR_SHARE = "fair_share"
    """For a tenant that had less waiting than its fair part, by the one that had most beyond its own."""


class Misrouting(enum.StrEnum):
    """Why a request came to a replica that its key is not assigned to."""

    STALE_ROUTER = "stale_router"
    """Its router held an older assignment than the replica."""
    NO_ASSIGNMENT = "no_assignment"
    """Its router named no assignment."""
    OVERFLOW = "overflow"
    """Its router went by the same assignment and chose beyond it."""


class AgentMetrics:
    """What the agent counts.

    Args:
        registry: Where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.requests = Counter(
            "fairlead_agent_requests", "Requests by how they ended", ["priority", "outcome"], registry=registry
        )
        self.received = Counter(
            "fairlead_agent_requests_received", "Requests received", ["priority"], registry=registry
        )
        self.displaced = Counter(
            "fairlead_agent_requests_displaced",
            "Waiting requests that had to leave a full queue, by why",
            ["reason"],
            registry=registry,
        )
        self.misrouted = Counter(
            "fairlead_agent_misrouted_requests",
            "Requests whose key this replica does not serve by the assignment it holds, by why",
            ["why"],
            registry=registry,
        )
        self.input_tokens = Counter("fairlead_agent_input_tokens", "Prompt tokens served", registry=registry)
        self.output_tokens = Counter("fairlead_agent_output_tokens", "Tokens generated", registry=registry)
        self.queue_wait_s = Histogram(
            "fairlead_agent_queue_wait_seconds", "Time in the agent's queue", registry=registry, buckets=_SECONDS
        )
        self.ttft_s = Histogram(
            "fairlead_agent_time_to_first_token_seconds",
            "From arrival at the agent to the first token",
            registry=registry,
            buckets=_SECONDS,
        )
        self.tpot_s = Histogram(
            "fairlead_agent_time_per_output_token_seconds",
            "Mean time per token after the first, per request",
            registry=registry,
            buckets=_TPOT_SECONDS,
        )
        self.probes = Counter("fairlead_agent_probes", "Health probes by result", ["result"], registry=registry)
        self.probe_s = Histogram(
            "fairlead_agent_probe_seconds", "Duration of answered probes", registry=registry, buckets=_SECONDS
        )
        self.engine_restarts = Counter(
            "fairlead_agent_engine_restarts", "Engine restarts by cause", ["cause"], registry=registry
        )

    def waiting(self, waiting_of: Callable[[Priority], int]) -> None:
        """Registers the requests waiting by class, read at scrape."""
        gauge = Gauge(
            "fairlead_agent_waiting_requests",
            "Requests waiting in the agent by class",
            ["priority"],
            registry=self._registry,
        )
        for priority in Priority:
            gauge.labels(priority.name.lower()).set_function(functools.partial(waiting_of, priority))

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Registers a number that is read at scrape."""
        Gauge(f"fairlead_agent_{name}", text, registry=self._registry).set_function(value)
