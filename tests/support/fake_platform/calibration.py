"""CalibrationService in memory: a calibration measures a load whenever somebody watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fairlead.admin.v1 import admin_pb2, calibration_pb2, calibration_pb2_grpc
from fairlead.admin.v1.calibration_pb2 import Calibration, CostProfile
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FailedPreconditionError, NotFoundError, Reason, UnavailableError
from tests.support.fake_platform.router import abort

if TYPE_CHECKING:
    from tests.support.fake_platform.control import FakeControlPlane

LOADS = 4
"""A calibration is done after so many loads."""
_UNDER_WAY = (calibration_pb2.CALIBRATION_STATE_PENDING, calibration_pb2.CALIBRATION_STATE_RUNNING)
_EPOCH_S = 1_770_000_000


class FakeCalibration(calibration_pb2_grpc.CalibrationServiceServicer):
    """Knows calibrations, profiles, drift and events; knobs say how calibrations end."""

    def __init__(self, control: FakeControlPlane) -> None:
        self._control = control
        self._changed = asyncio.Event()
        self._time_s = _EPOCH_S
        self.calibrations: dict[str, Calibration] = {}
        self.profiles = {"llama-3.1-8b/h100/1": profile_of("llama-3.1-8b", 1)}
        self.built_in = set(self.profiles)
        self.drift: list[calibration_pb2.DriftStatus] = []
        self.events: list[calibration_pb2.Event] = []
        self.ending: int = calibration_pb2.CALIBRATION_STATE_PUBLISHED
        """What the next calibration ends as."""
        self.detail = "measured"
        """What it then says."""
        self.hold_after: int | None = None
        """No load is measured after so many: the calibration waits to be paused."""
        self.pause_is_slow = False
        """A pause is accepted, and never carried out."""
        self.streams_break: int = 0
        """So many watches break off after their first message."""
        self.stale: list[Calibration] = []
        """Sent first by the next watches, as a server that lags behind would."""

    async def StartCalibration(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        self._control.mutations.append(request)
        model_id = request.model_id
        if model_id not in self._control.models:
            await abort(context, NotFoundError(f"no model {model_id}", reason=Reason.UNKNOWN_MODEL))
        latest = next((entry for entry in self._newest() if entry.model_id == model_id), None)
        if latest is not None and latest.state in _UNDER_WAY:
            await abort(context, FailedPreconditionError(f"{latest.calibration_id} measures {model_id} already"))
        paused = latest is not None and latest.state == calibration_pb2.CALIBRATION_STATE_PAUSED
        started = Calibration()
        if latest is not None and paused and not request.fresh:
            started.CopyFrom(latest)
        else:
            started.calibration_id = f"{model_id}@{len(self.calibrations) + 1}"
            started.model_id = model_id
            started.options.CopyFrom(request.options)
        started.state = calibration_pb2.CALIBRATION_STATE_PENDING
        started.replica_id, started.hardware, started.engine = f"{model_id}-r1", "h100", "simulated 1"
        return self._stored(started) if not request.validate_only else started

    async def GetCalibration(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        return await self._found(request, context)

    async def WatchCalibration(self, request: Any, context: Any) -> AsyncIterator[Calibration]:
        await self._control.check(context)
        found = await self._found(request, context)
        if self.stale:
            yield self.stale.pop(0)
        while True:
            yield found
            if self.streams_break:
                self.streams_break -= 1
                await abort(context, UnavailableError("the control plane shuts down", reason=Reason.SHUTTING_DOWN))
            if found.state not in _UNDER_WAY:
                return
            if self.hold_after is not None and len(found.experiments) >= self.hold_after:
                await self._changed.wait()
            else:
                self._stored(self._advanced(found))
            found = self.calibrations[found.calibration_id]

    async def ListCalibrations(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        chosen = [entry for entry in self._newest() if request.model_id in ("", entry.model_id)]
        return calibration_pb2.ListCalibrationsResponse(calibrations=chosen)

    async def PauseCalibration(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        self._control.mutations.append(request)
        paused = Calibration()
        paused.CopyFrom(self.calibrations[request.calibration_id])
        if paused.state not in _UNDER_WAY:
            await abort(context, FailedPreconditionError("it does not run"))
        if not self.pause_is_slow:
            paused.state = calibration_pb2.CALIBRATION_STATE_PAUSED
        return self._stored(paused)

    async def GetCalibrationReport(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        found = await self._found(request, context)
        page = f"<!DOCTYPE html><title>{found.calibration_id}: {len(found.experiments)} loads</title>"
        return calibration_pb2.CalibrationReport(html=page)

    async def PublishCalibration(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        self._control.mutations.append(request)
        published = Calibration()
        published.CopyFrom(self.calibrations[request.calibration_id])
        if published.state != calibration_pb2.CALIBRATION_STATE_REFUSED:
            await abort(context, FailedPreconditionError("only a refused calibration can be published"))
        published.state = calibration_pb2.CALIBRATION_STATE_PUBLISHED
        published.options.keep_active = request.keep_active
        return published if request.validate_only else self._stored(published)

    async def ListProfiles(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        answer = calibration_pb2.ListProfilesResponse()
        for name, profile in sorted(self.profiles.items()):
            if request.model in ("", profile.model) and request.hardware in ("", profile.hardware):
                active = [model.model_id for model in self._control.models.values() if model.profile_id == name]
                answer.profiles.add(profile=profile, built_in=name in self.built_in, active_for=sorted(active))
        return answer

    async def GetProfile(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        return await self._profile(request.profile_id, context)

    async def ImportProfile(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        self._control.mutations.append(request)
        stored = CostProfile()
        stored.CopyFrom(request.profile)
        stored.version = 1 + len([entry for entry in self.profiles.values() if entry.model == stored.model])
        stored.profile_id = f"{stored.model}/{stored.hardware}/{stored.version}"
        if not request.validate_only:
            self.profiles[stored.profile_id] = stored
        return stored

    async def ActivateProfile(self, request: Any, context: Any) -> Any:
        await self._profile(request.profile_id, context)
        return await self._activated(request, request.profile_id, context)

    async def RollbackProfile(self, request: Any, context: Any) -> Any:
        held = self._control.models.get(request.model_id, admin_pb2.Model())
        if not held.previous_profile_id:
            await abort(context, FailedPreconditionError(f"{request.model_id} has no previous cost profile"))
        return await self._activated(request, held.previous_profile_id, context)

    async def AcceptProposal(self, request: Any, context: Any) -> Any:
        proposal = next((status.proposal for status in self.drift if status.model_id == request.model_id), None)
        if proposal is None or not proposal.profile_id:
            await abort(context, FailedPreconditionError(f"nothing is proposed for {request.model_id}"))
        assert proposal is not None
        return await self._activated(request, proposal.profile_id, context)

    async def ListDrift(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        chosen = [status for status in self.drift if request.model_id in ("", status.model_id)]
        return calibration_pb2.ListDriftResponse(drift=chosen)

    async def ListEvents(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        chosen = [event for event in self.events if request.model_id in ("", event.model_id)]
        return calibration_pb2.ListEventsResponse(events=chosen[: request.page_size or 100])

    def add_refused(self, model_id: str) -> Calibration:
        """A calibration that ended refused."""
        refused = Calibration(
            calibration_id=f"{model_id}@{len(self.calibrations) + 1}",
            model_id=model_id,
            state=calibration_pb2.CALIBRATION_STATE_REFUSED,
            profile=profile_of(model_id, 2, hold_out_error=0.09),
        )
        return self._stored(refused)

    def _newest(self) -> list[Calibration]:
        return list(reversed(self.calibrations.values()))

    def _stored(self, calibration: Calibration) -> Calibration:
        self._time_s += 1
        calibration.update_time.seconds = self._time_s
        self.calibrations[calibration.calibration_id] = calibration
        self._changed.set()
        self._changed = asyncio.Event()
        return calibration

    def _advanced(self, before: Calibration) -> Calibration:
        """One load later."""
        after = Calibration()
        after.CopyFrom(before)
        number = len(after.experiments) + 1
        after.state = calibration_pb2.CALIBRATION_STATE_RUNNING
        load = engine_pb2.Load(lengths=[engine_pb2.Lengths(input_tokens=100 * number, output_tokens=50)], concurrency=4)
        measured = engine_pb2.Measurement(window_s=10.0, engine_s=20.0, first_tokens=40, output_tokens=2000)
        after.experiments.add(load=load, measurement=measured)
        after.detail = f"load {number} of {LOADS}: {100 * number} + 50 tokens, 4 at a time"
        after.engine_s, after.engine_left_s = 20.0 * number, 20.0 * (LOADS - number)
        after.progress = number / LOADS
        after.profile.CopyFrom(profile_of(after.model_id, 2, points=number))
        if number == LOADS:
            after.state = self.ending  # type: ignore[assignment]  # an enum's number
            after.detail = self.detail
        return after

    async def _found(self, request: Any, context: Any) -> Calibration:
        for entry in self._newest():
            if request.calibration_id == entry.calibration_id:
                return entry
            if not request.calibration_id and request.model_id == entry.model_id:
                return entry
        await abort(context, NotFoundError("there is no such calibration", reason=Reason.NOT_FOUND))
        raise AssertionError("abort raises")

    async def _profile(self, profile_id: str, context: Any) -> CostProfile:
        if profile_id not in self.profiles:
            await abort(context, NotFoundError(f"there is no cost profile {profile_id}", reason=Reason.NOT_FOUND))
        return self.profiles[profile_id]

    async def _activated(self, request: Any, profile_id: str, context: Any) -> Any:
        await self._control.check(context)
        self._control.mutations.append(request)
        if request.model_id not in self._control.models:
            await abort(context, NotFoundError(f"no model {request.model_id}", reason=Reason.UNKNOWN_MODEL))
        changed = admin_pb2.Model()
        changed.CopyFrom(self._control.models[request.model_id])
        changed.previous_profile_id, changed.profile_id = changed.profile_id, profile_id
        if not request.validate_only:
            self._control.models[request.model_id] = changed
        return changed


def profile_of(model: str, version: int, *, points: int = 4, hold_out_error: float = 0.021) -> CostProfile:
    """A profile of the H100, with evidence."""
    profile = CostProfile(
        profile_id=f"{model}/h100/{version}",
        model=model,
        hardware="h100",
        version=version,
        engine="simulated 1",
        provenance="made up for a test",
        tpot_objective_ms=50.0,
        form=calibration_pb2.COST_FORM_ATTENTION,
        a=2.0e-5,
        b=1.6e-4,
        d=2.4e-10,
        g=1.3e-8,
    )
    evidence = profile.evidence
    evidence.points, evidence.hold_out_error, evidence.engine_s = points, hold_out_error, 80.0
    evidence.class_errors["chat"], evidence.class_errors["code"] = -0.012, 0.034
    for name in ("a", "b", "d", "g"):
        value = getattr(profile, name)
        evidence.intervals[name].low, evidence.intervals[name].high = value * 0.9, value * 1.1
    evidence.latency_curve.add(intensity_ms=10.0, tpot_ms=6.5)
    evidence.latency_curve.add(intensity_ms=400.0, tpot_ms=25.0)
    evidence.latency_spread = 0.03
    return profile
