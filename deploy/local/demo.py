"""What the local platform serves: one demo model and two tenants with different quotas, made through the admin API.

Everything is idempotent. What a person changed since the last run (a reservation, say) is left alone, unless the kind
or the number of replicas changed, which the numbers below depend on.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from deploy.local.secret_files import SecretFiles, read_demo_keys, write_private
from fairlead.admin.v1 import admin_pb2, admin_pb2_grpc
from fairlead.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, from_rpc_error
from model_units.units import REPLICA_CAPACITY

TARGET_UTILIZATION = 0.8
KEY_NAME = "demo"
TIMEOUT_S = 10.0

TRITON_MODEL = admin_pb2.Model(
    model_id="tiny-llama",
    display_name="Tiny random Llama on Triton (CPU): real scheduling, meaningless text",
    engine=admin_pb2.EngineSpec(engine="triton", hardware="cpu-2core"),
    context_tokens=4096,
    output_tokens_max=2048,
    output_tokens_default=64,
    bytes_per_token=1.2,
    target_utilization=TARGET_UTILIZATION,
)
SIMULATED_MODEL = admin_pb2.Model(
    model_id="llama-3.1-8b",
    display_name="Llama 3.1 8B on simulated H100 replicas: real timing, meaningless text",
    engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
    context_tokens=131_072,
    output_tokens_max=16_384,
    output_tokens_default=256,
    bytes_per_token=4.0,
    target_utilization=TARGET_UTILIZATION,
)


@dataclass(frozen=True, slots=True)
class DemoTenant:
    """A tenant, with its quota as shares of the capacity that may be promised."""

    tenant_id: str
    display_name: str
    reserved_share: float
    burst_share: float


TENANTS = (
    DemoTenant("acme", "Acme, a large customer", 0.5, 1.0),
    DemoTenant("globex", "Globex, a small customer", 0.25, 0.5),
)


def demo_model(engine: str, replicas: int) -> admin_pb2.Model:
    """The demo model of an engine.

    Args:
        engine: "triton" or "sim".
        replicas: How many to hold.
    """
    model = admin_pb2.Model()
    model.CopyFrom(TRITON_MODEL if engine == "triton" else SIMULATED_MODEL)
    model.replicas_min = model.replicas_max = replicas
    return model


class AdminApi:
    """The admin API as the launcher uses it; raises the errors of the tree.

    Args:
        channel: To the control plane.
        token: The admin token.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._stub = admin_pb2_grpc.AdminServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def call(self, method: str, request: Any) -> Any:
        """Calls one method.

        Raises:
            FairleadError: It failed.
        """
        behaviour: Callable[..., Awaitable[Any]] = getattr(self._stub, method)
        try:
            return await behaviour(request, metadata=self._metadata, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


async def seed(api: AdminApi, model: admin_pb2.Model, files: SecretFiles) -> dict[str, str]:
    """Makes sure that the demo model, its tenants, their quotas and keys exist.

    Args:
        api: The admin API.
        model: What to serve.
        files: Where the tenants' keys are kept.

    Returns:
        API keys by tenant.
    """
    changed = await _ensure_model(api, model)
    await _retire_other_models(api, model.model_id)
    reserved = {held.tenant_id for held in await _reservations(api, model.model_id)}
    keys = read_demo_keys(files)
    for tenant in TENANTS:
        await _ensure_tenant(api, tenant)
        if changed or tenant.tenant_id not in reserved:
            await _reserve(api, tenant, model)
        keys[tenant.tenant_id] = await _ensure_key(api, tenant.tenant_id, keys.get(tenant.tenant_id, ""))
    write_private(files.demo_keys, json.dumps(keys).encode())
    return {tenant.tenant_id: keys[tenant.tenant_id] for tenant in TENANTS}


async def _ensure_model(api: AdminApi, model: admin_pb2.Model) -> bool:
    """Creates the model, or brings its engine and number of replicas up to date; says whether it did."""
    try:
        there = await api.call("GetModel", admin_pb2.GetModelRequest(model_id=model.model_id))
    except NotFoundError:
        await api.call("CreateModel", admin_pb2.CreateModelRequest(model=model))
        return True
    same = there.engine == model.engine
    if same and (there.replicas_min, there.replicas_max) == (model.replicas_min, model.replicas_max):
        return False
    there.engine.CopyFrom(model.engine)
    there.replicas_min, there.replicas_max = model.replicas_min, model.replicas_max
    await api.call("UpdateModel", admin_pb2.UpdateModelRequest(model=there))
    return True


async def _retire_other_models(api: AdminApi, model_id: str) -> None:
    """Removes the demo model of the other engine, left by an earlier run, with the demo tenants' access to it.

    Where a person gave further tenants access, it stays, without replicas.
    """
    for other in (TRITON_MODEL, SIMULATED_MODEL):
        if other.model_id == model_id:
            continue
        try:
            there = await api.call("GetModel", admin_pb2.GetModelRequest(model_id=other.model_id))
        except NotFoundError:
            continue
        ours = {tenant.tenant_id for tenant in TENANTS}
        for held in await _reservations(api, other.model_id):
            if held.tenant_id in ours:
                request = admin_pb2.DeleteReservationRequest(tenant_id=held.tenant_id, model_id=other.model_id)
                await api.call("DeleteReservation", request)
        try:
            await api.call("DeleteModel", admin_pb2.DeleteModelRequest(model_id=other.model_id))
        except FailedPreconditionError:
            there.replicas_min = there.replicas_max = 0
            await api.call("UpdateModel", admin_pb2.UpdateModelRequest(model=there))


async def _reservations(api: AdminApi, model_id: str) -> Sequence[admin_pb2.Reservation]:
    request = admin_pb2.ListReservationsRequest(model_id=model_id)
    response: admin_pb2.ListReservationsResponse = await api.call("ListReservations", request)
    return response.reservations


async def _ensure_tenant(api: AdminApi, tenant: DemoTenant) -> None:
    wanted = admin_pb2.Tenant(tenant_id=tenant.tenant_id, display_name=tenant.display_name)
    try:
        await api.call("CreateTenant", admin_pb2.CreateTenantRequest(tenant=wanted))
    except AlreadyExistsError:
        return


async def _reserve(api: AdminApi, tenant: DemoTenant, model: admin_pb2.Model) -> None:
    have = REPLICA_CAPACITY * model.replicas_min * TARGET_UTILIZATION
    reservation = admin_pb2.Reservation(
        tenant_id=tenant.tenant_id,
        model_id=model.model_id,
        reserved_milli_mu_per_minute=int(have * tenant.reserved_share),
        burst_ceiling_milli_mu_per_minute=int(have * tenant.burst_share),
    )
    await api.call("SetReservation", admin_pb2.SetReservationRequest(reservation=reservation))


async def _ensure_key(api: AdminApi, tenant_id: str, kept: str) -> str:
    """Returns the kept key if it still opens, else a new one in place of those that earlier runs made."""
    response = await api.call("ListApiKeys", admin_pb2.ListApiKeysRequest(tenant_id=tenant_id))
    kept_id = kept.split("-")[1] if kept.count("-") >= 2 else ""
    if kept_id and any(key.key_id == kept_id for key in response.api_keys):
        return kept
    for key in response.api_keys:
        if key.display_name == KEY_NAME:
            await api.call("RevokeApiKey", admin_pb2.RevokeApiKeyRequest(key_id=key.key_id))
    request = admin_pb2.CreateApiKeyRequest(tenant_id=tenant_id, display_name=KEY_NAME)
    return str((await api.call("CreateApiKey", request)).secret_key)
