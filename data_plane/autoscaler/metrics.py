"""What the autoscaler tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from data_plane.autoscaler.core.seat import Plan, SeatState


class AutoscalerMetrics:
    """The autoscaler's metrics.

    Args:
        registry: The process's registry.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leading = Gauge("fairlead_autoscaler_leading", "1 while this instance leads", registry=registry)
        self.starts = Counter("fairlead_autoscaler_starts", "Replicas started", ["model"], registry=registry)
        self.drains = Counter("fairlead_autoscaler_drains", "Replicas told to drain", ["model"], registry=registry)
        self.stops = Counter("fairlead_autoscaler_stops", "Replicas stopped", ["model", "reason"], registry=registry)
        self.failures = Counter(
            "fairlead_autoscaler_action_failures", "Actions that could not be carried out", ["model"], registry=registry
        )
        self._seats = Gauge("fairlead_autoscaler_seats", "Seats by state", ["model", "state"], registry=registry)
        self._wanted = Gauge("fairlead_autoscaler_replicas_wanted", "Replicas to have", ["model"], registry=registry)
        self._have = Gauge(
            "fairlead_autoscaler_have_milli_mu_per_minute", "Capacity there is or comes", ["model"], registry=registry
        )
        self._need = Gauge(
            "fairlead_autoscaler_need_milli_mu_per_minute",
            "Greatest capacity needed inside the stable window",
            ["model"],
            registry=registry,
        )

    def show(self, model_id: str, plan: Plan) -> None:
        """Publishes the numbers of a decision."""
        for state in SeatState:
            count = sum(seat_state is state for _, seat_state in plan.states)
            self._seats.labels(model_id, state.value).set(count)
        self._wanted.labels(model_id).set(plan.replicas_wanted)
        self._have.labels(model_id).set(plan.have)
        self._need.labels(model_id).set(plan.need_held)
