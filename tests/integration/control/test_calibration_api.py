"""The calibration API on real processes: who may call, and that every instance answers alike."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from common import keys
from fairlead.admin.v1 import admin_pb2, calibration_pb2_grpc
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import FailedPreconditionError, from_rpc_error
from model_units.profiles import built_in_profiles
from model_units.wire import profile_to_proto
from tests.integration.control.side import AUTH, MODEL, Side


async def stub(side: Side, name: str) -> calibration_pb2_grpc.CalibrationServiceAsyncStub:
    """The API of one instance."""
    instance = await side.instance("control-plane", name)
    return calibration_pb2_grpc.CalibrationServiceStub(side.channel(instance.address))


async def test_every_instance_answers_and_only_administrators(side: Side) -> None:
    """Proves the token for unary and streaming calls, and that what one instance stores the other puts into force."""
    for name in ("cp-1", "cp-2"):
        side.start("control_plane", name)
    engine = admin_pb2.EngineSpec(engine="simulated", hardware="h100")
    await side.store.put(keys.model(MODEL), admin_pb2.Model(model_id=MODEL, engine=engine).SerializeToString())
    first, second = await stub(side, "cp-1"), await stub(side, "cp-2")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await first.ListProfiles(pb.ListProfilesRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(first.WatchCalibration(pb.GetCalibrationRequest(model_id=MODEL), timeout=10)))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    shipped = profile_to_proto(built_in_profiles().default_for("h100"))
    stored = await first.ImportProfile(pb.ImportProfileRequest(profile=shipped), metadata=AUTH, timeout=10)
    assert stored.profile_id == f"llama-3.1-8b/h100/{shipped.version + 1}"
    request = pb.ActivateProfileRequest(model_id=MODEL, profile_id=stored.profile_id, request_id="once")
    model = await second.ActivateProfile(request, metadata=AUTH, timeout=10)
    assert model == await second.ActivateProfile(request, metadata=AUTH, timeout=10)
    assert model.previous_profile_id == shipped.profile_id
    listed = (await first.ListProfiles(pb.ListProfilesRequest(hardware="h100"), metadata=AUTH, timeout=10)).profiles
    assert [each.profile.profile_id for each in listed if each.active_for] == [stored.profile_id]
    events = (await first.ListEvents(pb.ListEventsRequest(), metadata=AUTH, timeout=10)).events
    assert [event.kind for event in events] == ["PROFILE_ACTIVATED"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        start = pb.StartCalibrationRequest(model_id=MODEL)
        await first.StartCalibration(start, metadata=AUTH, timeout=10)
    assert isinstance(from_rpc_error(refused.value), FailedPreconditionError)
