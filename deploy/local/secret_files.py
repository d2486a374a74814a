"""The platform's own secrets: made once, kept over restarts, readable by their owner only."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

PEPPER_BYTES = 32


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """Where the secrets are.

    Attributes:
        pepper: Key of the HMAC under which API keys are stored.
        admin_token: Bearer token of the admin API.
        demo_keys: API keys of the demo tenants, by tenant.
    """

    pepper: Path
    admin_token: Path
    demo_keys: Path


def prepare(folder: Path) -> SecretFiles:
    """Makes the secrets that do not exist yet.

    Args:
        folder: Where they are kept; made with mode 0700.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = SecretFiles(folder / "key-pepper", folder / "admin-token", folder / "demo-keys.json")
    if not files.pepper.exists():
        # Keys are stored under the pepper: with another one, the old ones open nothing.
        files.demo_keys.unlink(missing_ok=True)
        write_private(files.pepper, secrets.token_bytes(PEPPER_BYTES))
    if not files.admin_token.exists():
        write_private(files.admin_token, secrets.token_urlsafe(32).encode())
    return files


def read_demo_keys(files: SecretFiles) -> dict[str, str]:
    """API keys of the demo tenants; empty where none are kept."""
    try:
        keys = json.loads(files.demo_keys.read_text())
    except (OSError, ValueError):
        return {}
    return {str(tenant): str(key) for tenant, key in keys.items()} if isinstance(keys, dict) else {}


def write_private(path: Path, content: bytes) -> None:
    """Replaces a file atomically; only its owner can read it, at no moment anybody else."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    scratch.replace(path)
