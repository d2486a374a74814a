"""Gives a fresh compose platform something to do: a model, two tenants with different quotas, and their API keys.

    python -m deploy.docker.demo create   creates what is missing through the admin API and leaves the rest alone
    python -m deploy.docker.demo keys     prints addresses and API keys as JSON

The keys lie in their own volume, readable by this program only: an API key is shown once by the admin API and must not
stand in a container's log.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from fairlead.admin.v1 import admin_pb2, admin_pb2_grpc
from fairlead.errors import AlreadyExistsError, FailedPreconditionError, FairleadError, UnavailableError, from_rpc_error

Answer = TypeVar("Answer")

KEY_NAME = "compose demo"
PATIENCE_S = 60.0
"""The control plane is healthy before `create` starts; this is for one that restarts in between."""


@dataclass(frozen=True, slots=True)
class DemoTenant:
    """A tenant and what it may use, in model units per minute (one replica serves 100)."""

    tenant_id: str
    display_name: str
    reserved_mu_per_minute: int
    burst_ceiling_mu_per_minute: int


TENANTS = (
    DemoTenant("gold", "Demo tenant with most of one replica reserved", 50, 400),
    DemoTenant("bronze", "Demo tenant with a small reservation and a low ceiling", 10, 60),
)

MODELS = {
    "triton": admin_pb2.Model(
        model_id="tiny-llama",
        display_name="Random 0.4 M parameter Llama on Triton, CPU",
        engine=admin_pb2.EngineSpec(engine="triton", hardware="cpu-2core"),
        profile_id="tiny-llama/cpu-2core/1",
        context_tokens=4096,
        output_tokens_max=2048,
        output_tokens_default=64,
        bytes_per_token=3.0,
    ),
    "sim": admin_pb2.Model(
        model_id="llama-3.1-8b",
        display_name="Llama 3.1 8B on simulated H100s",
        engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
        profile_id="llama-3.1-8b/h100/1",
        context_tokens=131_072,
        output_tokens_max=16_384,
        output_tokens_default=256,
        bytes_per_token=4.0,
    ),
    "gpu": admin_pb2.Model(
        model_id=os.environ.get("GPU_MODEL") or "llama-3.1-8b-gpu",
        display_name="TensorRT-LLM on NVIDIA's Triton",
        engine=admin_pb2.EngineSpec(engine="triton", hardware="h100", endpoint="triton-gpu:8001"),
        profile_id="llama-3.1-8b/h100/1",
        context_tokens=8192,
        output_tokens_max=4096,
        output_tokens_default=256,
        bytes_per_token=4.0,
    ),
}


class Admin:
    """The admin API, patient with a control plane that is not there yet.

    Args:
        address: host:port.
        token: The admin token.
    """

    def __init__(self, address: str, token: str) -> None:
        self.stub = admin_pb2_grpc.AdminServiceStub(grpc.insecure_channel(address))
        self._metadata = (("authorization", f"Bearer {token}"),)

    def call(self, method: Callable[..., Answer], request: object) -> Answer:
        """Calls a method, again while nobody answers.

        Raises:
            FairleadError: The call was refused, or nobody answered for a minute.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return method(request, metadata=self._metadata, timeout=10.0)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if not isinstance(failure, UnavailableError) or time.monotonic() > deadline:
                    raise failure from error
                time.sleep(min(1.0, failure.retry_after_s or 0.5))

    def create(self, method: Callable[..., object], request: object, what: str) -> None:
        """Creates something unless it exists, and says which of the two it was."""
        try:
            self.call(method, request)
        except AlreadyExistsError:
            print(f"{what}: kept")
        else:
            print(f"{what}: created")


def create(admin: Admin, engine: str, keys: Path) -> None:
    """Creates the model, the tenants, their reservations and keys where they are missing.

    Args:
        admin: Where to.
        engine: "triton", "sim" or "gpu": which model.
        keys: Folder of the key files.

    Raises:
        FairleadError: The admin API refused something.
    """
    model = MODELS[engine]
    stub = admin.stub
    admin.create(stub.CreateModel, admin_pb2.CreateModelRequest(model=model), f"model {model.model_id}")
    for tenant in TENANTS:
        record = admin_pb2.Tenant(tenant_id=tenant.tenant_id, display_name=tenant.display_name)
        admin.create(stub.CreateTenant, admin_pb2.CreateTenantRequest(tenant=record), f"tenant {tenant.tenant_id}")
        _reserve(admin, model.model_id, tenant)
        print(f"key of {tenant.tenant_id}: {'created' if _make_key(admin, tenant.tenant_id, keys) else 'kept'}")


def _reserve(admin: Admin, model_id: str, tenant: DemoTenant) -> None:
    asked = admin_pb2.ListReservationsRequest(tenant_id=tenant.tenant_id, model_id=model_id)
    if admin.call(admin.stub.ListReservations, asked).reservations:
        return
    reservation = admin_pb2.Reservation(
        tenant_id=tenant.tenant_id,
        model_id=model_id,
        reserved_milli_mu_per_minute=tenant.reserved_mu_per_minute * 1000,
        burst_ceiling_milli_mu_per_minute=tenant.burst_ceiling_mu_per_minute * 1000,
    )
    admin.call(admin.stub.SetReservation, admin_pb2.SetReservationRequest(reservation=reservation))


def _make_key(admin: Admin, tenant_id: str, keys: Path) -> bool:
    """Makes sure that the tenant's key file holds a live key; returns whether a new one was needed."""
    path = keys / tenant_id
    live = admin.call(admin.stub.ListApiKeys, admin_pb2.ListApiKeysRequest(tenant_id=tenant_id)).api_keys
    if path.exists() and path.read_text().split("-")[1] in {key.key_id for key in live}:
        return False
    # The volume with the key files was lost while etcd's was kept: nobody knows the secrets of our earlier keys.
    for key in live:
        if key.display_name == KEY_NAME:
            admin.call(admin.stub.RevokeApiKey, admin_pb2.RevokeApiKeyRequest(key_id=key.key_id))
    request = admin_pb2.CreateApiKeyRequest(tenant_id=tenant_id, display_name=KEY_NAME)
    secret = admin.call(admin.stub.CreateApiKey, request).secret_key
    partial = keys / f".{tenant_id}.partial"
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret)
    partial.rename(path)
    return True


def describe(keys: Path, engine: str, host: str, http_port: int, grpc_port: int) -> dict[str, object]:
    """Returns addresses and keys for people and scripts.

    Raises:
        FailedPreconditionError: The keys were not created yet.
    """
    missing = [tenant.tenant_id for tenant in TENANTS if not (keys / tenant.tenant_id).exists()]
    if missing:
        raise FailedPreconditionError(f"no key of {', '.join(missing)} yet: see `docker compose logs setup`")
    model_id = MODELS[engine].model_id
    tenants = {
        tenant.tenant_id: {"key": (keys / tenant.tenant_id).read_text(), "model": model_id} for tenant in TENANTS
    }
    return {"http": f"http://{host}:{http_port}", "grpc": f"{host}:{grpc_port}", "tenants": tenants}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog="demo", description=main.__doc__)
    parser.add_argument("verb", choices=("create", "keys"))
    verb = parser.parse_args(argv).verb
    environ = os.environ
    engine, keys = environ.get("ENGINE", "triton"), Path(environ["KEYS_DIR"])
    try:
        if engine not in MODELS:
            raise FailedPreconditionError(f"ENGINE is {engine!r}; it must be one of triton, sim")
        if verb == "create":
            token = (Path(environ["ADMIN_DIR"]) / "admin-token").read_text().strip()
            create(Admin(environ["FAIRLEAD_ADMIN_ADDRESS"], token), engine, keys)
            print("The API keys: docker compose run --rm keys")
        else:
            host, ports = environ["PUBLISH_ADDRESS"], (int(environ["HTTP_PORT"]), int(environ["GRPC_PORT"]))
            print(json.dumps(describe(keys, engine, host, *ports), indent=2))
    except FairleadError as error:
        print(f"{error.reason.value}: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
