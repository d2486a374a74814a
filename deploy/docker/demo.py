"""Gives a fresh compose platform something to do: a model, two tenants with different quotas, and their API keys.

    python -m deploy.docker.demo create   creates what is missing through the admin API: the same demo as `make run`
    python -m deploy.docker.demo gpu      gives the demo's tenants access to the model of the GPU profile
    python -m deploy.docker.demo keys     prints addresses and API keys as JSON

The keys lie in a volume of their own: the admin API shows a key once, and it must not stand in a container's log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import grpc.aio

from deploy.local.demo import TARGET_UTILIZATION, TENANTS, AdminApi, demo_model, seed
from deploy.local.secret_files import SecretFiles, read_demo_keys, write_private
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    FairleadError,
    InvalidArgumentError,
    UnavailableError,
)
from model_units.units import REPLICA_CAPACITY

PATIENCE_S = 60.0
"""The control plane is healthy before `create` starts; this is for one that restarts in between."""


def model_of(environ: Mapping[str, str]) -> admin_pb2.Model:
    """Returns the demo model of ENGINE for REPLICAS replicas.

    Raises:
        InvalidArgumentError: ENGINE or REPLICAS is not usable.
    """
    engine, replicas = environ["ENGINE"], environ["REPLICAS"]
    if engine not in ("triton", "sim"):
        raise InvalidArgumentError(f"ENGINE is {engine!r}; it must be triton or sim")
    if not replicas.isdecimal() or not int(replicas):
        raise InvalidArgumentError(f"REPLICAS is {replicas!r}; it must be a number from 1")
    return demo_model(engine, int(replicas))


def gpu_model_of(environ: Mapping[str, str]) -> admin_pb2.Model:
    """Returns the model that NVIDIA's Triton serves in the GPU profile."""
    return admin_pb2.Model(
        model_id=environ["GPU_MODEL"],
        display_name="TensorRT-LLM on NVIDIA's Triton",
        engine=admin_pb2.EngineSpec(engine="triton", hardware=environ["GPU_HARDWARE"], endpoint="triton-gpu:8001"),
        context_tokens=8192,
        output_tokens_max=4096,
        output_tokens_default=256,
        bytes_per_token=4.0,
        target_utilization=TARGET_UTILIZATION,
        replicas_min=1,
        replicas_max=1,
    )


async def add_gpu_model(api: AdminApi, model: admin_pb2.Model) -> None:
    """Creates the model, and reservations for the demo's tenants where they have none.

    Raises:
        FairleadError: The admin API refused.
    """
    try:
        await api.call("CreateModel", admin_pb2.CreateModelRequest(model=model))
    except AlreadyExistsError:
        print(f"model {model.model_id}: kept")
    have = REPLICA_CAPACITY * TARGET_UTILIZATION
    for tenant in TENANTS:
        asked = admin_pb2.ListReservationsRequest(tenant_id=tenant.tenant_id, model_id=model.model_id)
        if (await api.call("ListReservations", asked)).reservations:
            continue
        reservation = admin_pb2.Reservation(
            tenant_id=tenant.tenant_id,
            model_id=model.model_id,
            reserved_milli_mu_per_minute=int(have * tenant.reserved_share),
            burst_ceiling_milli_mu_per_minute=int(have * tenant.burst_share),
        )
        await api.call("SetReservation", admin_pb2.SetReservationRequest(reservation=reservation))


async def with_patience(address: str, token: str, work: Callable[[AdminApi], Awaitable[object]]) -> None:
    """Does idempotent work at the admin API, from the start again while nobody answers.

    Raises:
        FairleadError: The admin API refused, or nobody answered for a minute.
    """
    deadline = time.monotonic() + PATIENCE_S
    async with grpc.aio.insecure_channel(address) as channel:
        while True:
            try:
                await work(AdminApi(channel, token))
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(1.0)
            else:
                return


def describe(tenant_keys: Mapping[str, str], model_id: str, http: str, grpc_address: str, admin: str) -> bytes:
    """Returns addresses and keys in the form of `make run`'s platform.json, which the CLI and scripts read.

    Args:
        tenant_keys: API key by tenant.
        model_id: The model they may use.
        http: URL of the HTTP API.
        grpc_address: host:port of the gRPC API.
        admin: host:port of the admin API.
    """
    document = {
        "http": http,
        "grpc": grpc_address,
        "admin": admin,
        "metrics": {},
        "tenants": {tenant_id: {"key": key, "model": model_id} for tenant_id, key in tenant_keys.items()},
        "processes": [],
    }
    return (json.dumps(document, indent=2) + "\n").encode()


async def create(api: AdminApi, model: admin_pb2.Model, files: SecretFiles) -> None:
    """Makes the demo, and a platform.json for the CLI in a container of this network.

    Raises:
        FairleadError: The admin API refused.
    """
    tenant_keys = await seed(api, model, files)
    document = describe(tenant_keys, model.model_id, "http://edge:8080", "edge:8081", "edge:8082")
    write_private(files.demo_keys.with_name("platform.json"), document)


def show(files: SecretFiles, environ: Mapping[str, str]) -> None:
    """Prints the demo's keys with the published addresses.

    Raises:
        FailedPreconditionError: The keys were not created yet.
    """
    tenant_keys = read_demo_keys(files)
    if not tenant_keys:
        raise FailedPreconditionError("there are no demo keys yet: see `docker compose logs setup`")
    host = environ["PUBLISH_ADDRESS"]
    http, grpc_address, admin = (f"{host}:{environ[name]}" for name in ("HTTP_PORT", "GRPC_PORT", "ADMIN_PORT"))
    document = describe(tenant_keys, model_of(environ).model_id, f"http://{http}", grpc_address, admin)
    sys.stdout.write(document.decode())


def run(verb: str, environ: Mapping[str, str]) -> None:
    """Does what one of the three verbs says.

    Raises:
        FairleadError: It cannot be done.
    """
    admin = Path(environ.get("ADMIN_DIR", ""))
    files = SecretFiles(Path(), admin / "admin-token", Path(environ["KEYS_DIR"]) / "demo-keys.json")
    if verb == "keys":
        show(files, environ)
        return
    address, token = environ["FAIRLEAD_ADMIN_ADDRESS"], files.admin_token.read_text().strip()
    if verb == "gpu":
        model = gpu_model_of(environ)
        asyncio.run(with_patience(address, token, lambda api: add_gpu_model(api, model)))
    else:
        model = model_of(environ)
        asyncio.run(with_patience(address, token, lambda api: create(api, model, files)))
    print(f"Model {model.model_id} is there for the tenants {', '.join(tenant.tenant_id for tenant in TENANTS)}.")
    print("Addresses and API keys: docker compose run --rm keys")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog="demo", description=main.__doc__)
    parser.add_argument("verb", choices=("create", "gpu", "keys"))
    try:
        run(parser.parse_args(argv).verb, os.environ)
    except FairleadError as error:
        print(f"{error.reason.value}: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
