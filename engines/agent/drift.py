"""Follows the profile in force and says in the replica's record how far the engine is from it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from common import keys
from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.mirror import Mirror
from common.store import Store
from engines.agent.core.decoding import DecodeMeter
from engines.agent.core.drift import DriftWindow
from engines.agent.record import ReplicaRecord
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import NotFoundError
from model_units.cost import CostProfile
from model_units.profiles import built_in_profiles
from model_units.wire import decode_profile

log = get_logger(__name__)

_WRITE_INTERVAL_S = 5.0
_MOVE_MIN = 0.02
_TOKENS_FACTOR = 1.5


class DriftWatch:
    """Compares window by window.

    Args:
        store: Where the model and the profiles are.
        model_id: What this replica serves.
        hardware: What on.
        meter: What the engine does.
        record: Says what came of it.
        clock: Monotonic time.
        window_s: Length of a window, seconds.
        smoothing_s: Busy time that the ratio looks back on, seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        model_id: str,
        hardware: str,
        meter: DecodeMeter,
        record: ReplicaRecord,
        clock: Clock,
        window_s: float,
        smoothing_s: float,
    ) -> None:
        # The prefix of one model's key may begin another's: only what has nothing after it is this model.
        self._models: Mirror[admin_pb2.Model] = Mirror(store, keys.model(model_id), admin_pb2.Model.FromString)
        self._profiles: Mirror[CostProfile] = Mirror(store, keys.PROFILES, decode_profile)
        self._hardware = hardware
        self._meter = meter
        self._record = record
        self._clock = clock
        self._window_s = window_s
        self._smoothing_s = smoothing_s
        self._profile: CostProfile | None = None
        self._engine_restarts = 0
        self._window = DriftWindow((), smoothing_s)
        self._told, self._told_s = (0.0, "", 0), -_WRITE_INTERVAL_S

    @property
    def ratio(self) -> float:
        """Time the engine takes over time the profile says; 0 where nothing is known."""
        return self._window.ratio

    async def run(self) -> None:
        """Compares until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for mirror in (self._models, self._profiles):
                tasks.create_task(mirror.run())
            tasks.create_task(self._compare())

    async def _compare(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(self._window_s)

    def look(self) -> None:
        """Ends a window: takes what it saw, or begins anew where the profile or the engine is another one."""
        now_s = self._clock.monotonic_ns() / NS_PER_S
        profile = in_force(self._models.items.get(""), self._profiles.items, self._hardware)
        restarts = self._record.described.engine_restarts
        if profile != self._profile or restarts != self._engine_restarts:
            self._profile, self._engine_restarts = profile, restarts
            curve = profile.evidence.latency_curve if profile is not None and profile.evidence is not None else ()
            log.info("comparing with", profile=profile and profile.profile_id, curve_points=len(curve))
            self._meter.price_with(profile if curve else None, now_s)
            self._window = DriftWindow(curve, self._smoothing_s)
        else:
            self._window.add(self._meter.take(now_s), now_s)
        self._write(now_s)

    def _write(self, now_s: float) -> None:
        """Writes a ratio that has moved, not too often."""
        ratio = self._window.ratio
        tokens = self._window.tokens if ratio else 0
        profile_id = self._profile.profile_id if self._profile is not None and ratio else ""
        before, about, counted = self._told
        moved = abs(ratio - before) > _MOVE_MIN * before or profile_id != about
        # The control plane weighs replicas by their tokens: the first few must not stand for ever.
        moved = moved or not counted / _TOKENS_FACTOR <= tokens <= counted * _TOKENS_FACTOR
        if moved and now_s - self._told_s >= _WRITE_INTERVAL_S:
            self._told, self._told_s = (ratio, profile_id, tokens), now_s
            self._record.set_drift(ratio, profile_id, tokens)


def in_force(model: admin_pb2.Model | None, live: Mapping[str, CostProfile], hardware: str) -> CostProfile | None:
    """The profile a model is priced with, if it is about this hardware; None where there is none."""
    if model is None:
        return None
    try:
        profile = built_in_profiles().with_live(live).resolve(model.profile_id, model.engine.hardware)
    except NotFoundError:
        return None
    return profile if profile.hardware == hardware else None
