"""The sharder: which replicas serve which tenant, by the product's core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from control_plane.core.assign import Candidate, Placement, StormWait, assign
from fairlead.engine.v1 import engine_pb2
from model_units.units import MilliModelUnitsPerMinute as Rate
from simulation.kernel import NS_PER_S, Loop
from simulation.registry import Registry
from simulation.router import Router

# The control plane's default settings: control_plane/config.py, and the pause after a change in its sharder.
_ASSIGN_INTERVAL_S: Final = 5.0
_STORM_WAIT_NS: Final = NS_PER_S
_SETTLE_S: Final = 0.1


class Sharder:
    """Keeps every model's placement true to the fleet.

    Args:
        loop: Virtual time.
        registry: The replicas' records.
        workloads: Reserved rate by tenant, by model.
        routers: They follow the placements.
        delay_ns: Of the store.

    Attributes:
        moves: (time, model, reason) of every placement.
    """

    def __init__(
        self,
        loop: Loop,
        registry: Registry,
        workloads: Mapping[str, Mapping[str, Rate]],
        routers: Sequence[Router],
        delay_ns: int,
    ) -> None:
        self._loop = loop
        self._registry = registry
        self._workloads = workloads
        self._routers = routers
        self._delay_ns = delay_ns
        self._placements: dict[str, Placement] = {}
        self._storms = {model_id: StormWait(_STORM_WAIT_NS) for model_id in workloads}
        self._look_planned = False
        self._changed = True
        self.moves: list[tuple[int, str, str]] = []
        registry.watch(self._on_record)
        loop.after(0.0, self._regular)

    def placement(self, model_id: str) -> Placement | None:
        """The placement in force, if there is one."""
        return self._placements.get(model_id)

    def _on_record(self, _replica_id: str, _record: engine_pb2.Replica | None) -> None:
        self._changed = True
        self._soon(_SETTLE_S)

    def _soon(self, seconds: float) -> None:
        if not self._look_planned:
            self._look_planned = True
            self._loop.after(seconds, self._look)

    def _regular(self, _: object) -> None:
        self._soon(0.0)
        self._loop.after(_ASSIGN_INTERVAL_S, self._regular)

    def _look(self, _: object) -> None:
        self._look_planned = False
        if not self._changed:
            return  # the same records give the same placement
        self._changed = False
        for model_id in sorted(self._workloads):
            self._look_at(model_id)

    def _look_at(self, model_id: str) -> None:
        candidates = [
            Candidate(record.replica_id, record.slot, Rate(record.capacity_milli_mu_per_minute))
            for _, record in sorted(self._registry.records.items())
            if record.model_id == model_id and record.state == engine_pb2.REPLICA_STATE_READY
        ]
        previous = self._placements.get(model_id)
        placement = assign(
            model_id,
            candidates,
            self._workloads[model_id],
            previous,
            incarnation=1,
            now_ms=self._loop.wall_ns() // 1_000_000,
        )
        if placement is None:
            return
        removal = previous is not None and bool(previous.members() - placement.members())
        remaining_ns = self._storms[model_id].remaining_ns(removal, self._loop.now_ns)
        if remaining_ns:
            self._changed = True
            self._soon(remaining_ns / NS_PER_S)
            return
        self._placements[model_id] = placement
        self.moves.append((self._loop.now_ns, model_id, placement.reason))
        self._loop.at(self._loop.now_ns + self._delay_ns, self._tell, model_id)

    def _tell(self, model_id: str) -> None:
        placement = self._placements[model_id]
        for router in self._routers:
            router.subsets[model_id] = (dict(placement.subsets), placement.default)
