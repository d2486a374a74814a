"""Finds the platform that `make run` started: build/run/platform.json, here or further up."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import FailedPreconditionError, InvalidArgumentError

RELATIVE_PATH = Path("build/run/platform.json")


@dataclass(frozen=True, slots=True)
class LocalTenant:
    """A tenant of the local platform."""

    key: str
    """Its API key."""
    model: str
    """The model it was given."""


@dataclass(frozen=True, slots=True)
class LocalPlatform:
    """What the local platform wrote about itself."""

    path: Path
    """The file."""
    http: str
    """host:port of the HTTP gateway."""
    grpc: str
    """host:port of the routers."""
    admin: str
    """host:port of the control plane."""
    admin_token_file: Path | None
    """File with the admin token."""
    metrics: Mapping[str, str]
    """Address of each process's /metrics, by process name."""
    tenants: Mapping[str, LocalTenant]
    """Demo tenants by name."""
    processes: Mapping[str, int]
    """Process ids by name."""

    def running(self) -> bool:
        """Whether any of its processes is alive; True where it recorded none."""
        return not self.processes or any(process_alive(pid) for pid in self.processes.values())


def find_platform(environment: Mapping[str, str] = os.environ, start: Path | None = None) -> Path | None:
    """Finds the file: FAIRLEAD_PLATFORM, else build/run/platform.json in `start` or a folder above it.

    Args:
        environment: The environment.
        start: Where to begin; the working directory when None.
    """
    named = environment.get("FAIRLEAD_PLATFORM")
    if named:
        return Path(named)
    here = (start or Path.cwd()).resolve()
    return next(
        (folder / RELATIVE_PATH for folder in (here, *here.parents) if (folder / RELATIVE_PATH).is_file()), None
    )


def read_platform(path: Path) -> LocalPlatform:
    """Reads the file.

    Raises:
        FailedPreconditionError: It is not there or not readable.
        InvalidArgumentError: It is not what a platform writes.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}; is the local platform up?") from None
    except ValueError:
        raise InvalidArgumentError(f"{path} is not JSON: start the local platform again") from None
    try:
        token_file = data.get("admin_token_file")
        return LocalPlatform(
            path=path,
            http=host_port(data["http"]),
            grpc=host_port(data["grpc"]),
            admin=host_port(data.get("admin", "")),
            admin_token_file=_beside(path, token_file) if token_file else None,
            metrics={name: str(address) for name, address in data.get("metrics", {}).items()},
            tenants={
                name: LocalTenant(entry["key"], entry.get("model", "")) for name, entry in data["tenants"].items()
            },
            processes={entry["name"]: int(entry["pid"]) for entry in data.get("processes", [])},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"{path} is not what a platform writes ({error!r}): start it again") from None


def host_port(address: str) -> str:
    """Strips a scheme and a path from an address."""
    return address.partition("://")[2].partition("/")[0] if "://" in address else address.rstrip("/")


def process_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _beside(path: Path, name: str) -> Path:
    given = Path(name)
    # build/run/platform.json: a relative name counts from the file's folder, or from the folder `make run` ran in.
    places = [given] if given.is_absolute() else [path.parent / given, path.parent.parent.parent / given]
    return next((place for place in places if place.is_file()), places[-1])
