"""CalibrationService over gRPC: every call goes to the part that knows; mutations are remembered by request id."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from control_plane.events import Events
from control_plane.mutations import Mutations
from control_plane.profiles import Profiles
from fairlead.admin.v1 import admin_pb2, calibration_pb2_grpc
from fairlead.admin.v1 import calibration_pb2 as pb


class Runs(Protocol):
    """What there is to calibrations, as the API has it."""

    async def start(self, request: pb.StartCalibrationRequest) -> pb.Calibration:
        """See CalibrationService."""
        ...

    async def get(self, request: pb.GetCalibrationRequest) -> pb.Calibration:
        """See CalibrationService."""
        ...

    def watch(self, request: pb.GetCalibrationRequest) -> AsyncIterator[pb.Calibration]:
        """See CalibrationService."""
        ...

    async def list(self, request: pb.ListCalibrationsRequest) -> pb.ListCalibrationsResponse:
        """See CalibrationService."""
        ...

    async def pause(self, request: pb.PauseCalibrationRequest) -> pb.Calibration:
        """See CalibrationService."""
        ...

    async def report(self, request: pb.GetCalibrationRequest) -> pb.CalibrationReport:
        """See CalibrationService."""
        ...

    async def publish(self, request: pb.PublishCalibrationRequest) -> pb.Calibration:
        """See CalibrationService."""
        ...


class CalibrationService(calibration_pb2_grpc.CalibrationServiceServicer):
    """Answers on every instance.

    Args:
        calibrations: What is measured.
        profiles: What it led to, and what production says about it.
        events: What happened.
        mutations: Does each once per request id.
    """

    def __init__(self, *, calibrations: Runs, profiles: Profiles, events: Events, mutations: Mutations) -> None:
        self._calibrations = calibrations
        self._profiles = profiles
        self._events = events
        self._mutate = mutations.run

    async def StartCalibration(self, request: pb.StartCalibrationRequest, context: Any) -> pb.Calibration:
        """See the proto."""
        return await self._mutate("StartCalibration", request, self._calibrations.start)

    async def GetCalibration(self, request: pb.GetCalibrationRequest, context: Any) -> pb.Calibration:
        """See the proto."""
        return await self._calibrations.get(request)

    async def WatchCalibration(self, request: pb.GetCalibrationRequest, context: Any) -> AsyncIterator[pb.Calibration]:
        """See the proto."""
        async for calibration in self._calibrations.watch(request):
            yield calibration

    async def ListCalibrations(self, request: pb.ListCalibrationsRequest, context: Any) -> pb.ListCalibrationsResponse:
        """See the proto."""
        return await self._calibrations.list(request)

    async def PauseCalibration(self, request: pb.PauseCalibrationRequest, context: Any) -> pb.Calibration:
        """See the proto."""
        return await self._mutate("PauseCalibration", request, self._calibrations.pause)

    async def GetCalibrationReport(self, request: pb.GetCalibrationRequest, context: Any) -> pb.CalibrationReport:
        """See the proto."""
        return await self._calibrations.report(request)

    async def PublishCalibration(self, request: pb.PublishCalibrationRequest, context: Any) -> pb.Calibration:
        """See the proto."""
        return await self._mutate("PublishCalibration", request, self._calibrations.publish)

    async def ListProfiles(self, request: pb.ListProfilesRequest, context: Any) -> pb.ListProfilesResponse:
        """See the proto."""
        return await self._profiles.list(request)

    async def GetProfile(self, request: pb.GetProfileRequest, context: Any) -> pb.CostProfile:
        """See the proto."""
        return await self._profiles.get(request)

    async def ImportProfile(self, request: pb.ImportProfileRequest, context: Any) -> pb.CostProfile:
        """See the proto."""
        return await self._mutate("ImportProfile", request, self._profiles.import_)

    async def ActivateProfile(self, request: pb.ActivateProfileRequest, context: Any) -> admin_pb2.Model:
        """See the proto."""
        return await self._mutate("ActivateProfile", request, self._profiles.activate)

    async def RollbackProfile(self, request: pb.RollbackProfileRequest, context: Any) -> admin_pb2.Model:
        """See the proto."""
        return await self._mutate("RollbackProfile", request, self._profiles.rollback)

    async def ListDrift(self, request: pb.ListDriftRequest, context: Any) -> pb.ListDriftResponse:
        """See the proto."""
        return await self._profiles.drift(request)

    async def AcceptProposal(self, request: pb.AcceptProposalRequest, context: Any) -> admin_pb2.Model:
        """See the proto."""
        return await self._mutate("AcceptProposal", request, self._profiles.accept)

    async def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> pb.ListEventsResponse:
        """See the proto."""
        return await self._events.list(request)
