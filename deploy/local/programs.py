"""The command lines of the local platform's services."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.local.children import Program
from deploy.local.ports import HOST, Ports
from deploy.local.secret_files import SecretFiles

ROUTERS = 2
DRAIN_GRACE_S = 3.0
"""Local traffic is a person trying things: Ctrl-C must not wait longer for it."""


@dataclass(frozen=True, slots=True)
class Site:
    """What the services of one run have in common.

    Attributes:
        run_dir: Everything the platform writes.
        etcd_endpoint: The store.
        ports: What is served to the outside.
        secrets: The platform's secrets.
        standbys: Further instances of each control service.
    """

    run_dir: Path
    etcd_endpoint: str
    ports: Ports
    secrets: SecretFiles
    standbys: int

    @property
    def log_dir(self) -> Path:
        """One log file per process."""
        return self.run_dir / "logs"

    @property
    def seats_dir(self) -> Path:
        """The autoscaler's seat files."""
        return self.run_dir / "replicas"


def _service(site: Site, package: str, name: str, **settings: object) -> Program:
    common = {
        "etcd_endpoint": site.etcd_endpoint,
        "instance_id": name,
        "bind_host": HOST,
        "supervisor_pid": os.getpid(),
        "drain_grace_s": DRAIN_GRACE_S,
    }
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (common | settings).items()]
    return Program(name, [sys.executable, "-m", package, *flags])


def control_planes(site: Site) -> Iterator[Program]:
    """The admin API and the sharder; the first instance serves the known port."""
    for number in range(1, site.standbys + 2):
        yield _service(
            site,
            "control_plane",
            f"control-plane-{number}",
            grpc_port=site.ports.admin if number == 1 else 0,
            key_pepper_file=site.secrets.pepper,
            admin_token_file=site.secrets.admin_token,
        )


def autoscalers(site: Site) -> Iterator[Program]:
    """What starts the replicas."""
    for number in range(1, site.standbys + 2):
        yield _service(
            site, "data_plane.autoscaler", f"autoscaler-{number}", state_dir=site.seats_dir, log_dir=site.log_dir
        )


def quota_services(site: Site) -> Iterator[Program]:
    """The rate limiter and the capacity allocator."""
    for service in ("capacity", "ratelimiter"):
        for number in range(1, site.standbys + 2):
            yield _service(site, service, f"{service}-{number}")


def routers(site: Site) -> Iterator[Program]:
    """The routers with their HTTP gateways; they share both ports."""
    for number in range(1, ROUTERS + 1):
        yield _service(
            site,
            "data_plane.router",
            f"router-{number}",
            grpc_port=site.ports.grpc,
            http_port=site.ports.http,
            key_pepper_file=site.secrets.pepper,
            state_dir=site.run_dir / "snapshots" / f"router-{number}",
        )
