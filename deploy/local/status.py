"""Whether everything serves, what runs where, and platform.json, which tells scripts."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.local.children import Child
from deploy.local.demo import AdminApi
from deploy.local.ports import HOST
from deploy.local.programs import Site
from deploy.local.secret_files import write_private
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError

LED_SERVICES = ("control-plane", "ratelimiter", "capacity", "autoscaler")
PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Status:
    """What the control plane knows of the running platform.

    Attributes:
        services: Every process that registered itself.
        replicas: Every registered replica.
    """

    services: tuple[admin_pb2.ServiceInstance, ...]
    replicas: tuple[engine_pb2.Replica, ...]


async def read_status(api: AdminApi) -> Status:
    """Asks the control plane.

    Raises:
        FairleadError: It does not answer.
    """
    services = await api.call("ListServices", admin_pb2.ListServicesRequest())
    replicas = await api.call("ListReplicas", admin_pb2.ListReplicasRequest())
    return Status(tuple(services.services), tuple(replicas.replicas))


async def missing(status: Status, children: Iterable[Child], model: admin_pb2.Model) -> list[str]:
    """What does not serve yet, in words; empty when everything does.

    Args:
        status: As read now.
        children: The launcher's own processes.
        model: The demo model with the number of replicas to wait for.
    """
    registered = {each.instance_id: each for each in status.services}
    own = [child for child in children if child.name != "etcd"]
    lacking = [child.name for child in own if _pid(registered.get(child.name)) != child.pid]
    led = {each.service for each in status.services if each.leader}
    lacking += [f"a leader of {service}" for service in LED_SERVICES if service not in led]
    ready = sum(
        replica.model_id == model.model_id and replica.state == engine_pb2.REPLICA_STATE_READY
        for replica in status.replicas
    )
    if ready < model.replicas_min:
        lacking.append(f"replicas ({ready} of {model.replicas_min} ready)")
    if lacking:
        return lacking
    # Asked last, and only once everyone is there: the start is short of processor time.
    answers = await asyncio.gather(*(asyncio.to_thread(_not_ready, registered[child.name]) for child in own))
    return [f"{child.name} ({why})" for child, why in zip(own, answers, strict=True) if why]


def _pid(instance: admin_pb2.ServiceInstance | None) -> int:
    return instance.pid if instance is not None else 0


def _not_ready(instance: admin_pb2.ServiceInstance) -> str:
    """Why a process says it is not ready; empty when it is."""
    try:
        with urllib.request.urlopen(f"http://{instance.ops_address}/readyz", timeout=PROBE_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as answer:
        return answer.read(200).decode(errors="replace").strip()
    except OSError as error:
        return str(error)


def platform_document(
    site: Site, model: admin_pb2.Model, keys: dict[str, str], status: Status, children: Iterable[Child]
) -> bytes:
    """What platform.json holds: JSON.

    Args:
        site: Where the platform runs.
        model: The demo model.
        keys: API keys by tenant.
        status: As read now.
        children: The launcher's own processes.
    """
    own = {child.name: child.pid for child in children if child.pid}
    metrics = {each.instance_id: _metrics(each.ops_address) for each in status.services if each.instance_id in own}
    metrics["etcd"] = _metrics(site.etcd_endpoint)
    processes = [("launcher", os.getpid()), *own.items()]
    for replica in sorted(status.replicas, key=lambda replica: (replica.model_id, len(replica.slot), replica.slot)):
        if not replica.slot:
            continue
        metrics[replica.slot] = _metrics(replica.ops_address)
        processes.append((replica.slot, replica.agent_pid))
        if replica.engine_pid:
            processes.append((f"{replica.slot}-engine", replica.engine_pid))
    document = {
        "http": f"http://{HOST}:{site.ports.http}",
        "grpc": f"{HOST}:{site.ports.grpc}",
        "admin": f"{HOST}:{site.ports.admin}",
        "admin_token_file": str(site.secrets.admin_token),
        "metrics": metrics,
        "tenants": {tenant: {"key": key, "model": model.model_id} for tenant, key in keys.items()},
        "processes": [{"name": name, "pid": pid} for name, pid in processes],
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def _metrics(address: str) -> str:
    return f"http://{address}/metrics"


async def keep_document(
    path: Path, site: Site, model: admin_pb2.Model, keys: dict[str, str], api: AdminApi, children: Iterable[Child]
) -> None:
    """Rewrites platform.json whenever what it says has changed (a process was restarted, say), until cancelled."""
    written = b""
    while True:
        await asyncio.sleep(2.0)
        try:
            status = await read_status(api)
        except FairleadError:
            continue  # the control plane is being restarted: what is written stays the best there is
        document = platform_document(site, model, keys, status, children)
        if document != written:
            write_private(path, document)
            written = document
