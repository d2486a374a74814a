"""Writes the platform's two secrets into their volumes, once; the first container `docker compose up` runs.

    PEPPER_DIR/key-pepper      what API keys are hashed with: the control plane and the routers read it
    ADMIN_DIR/admin-token      what the admin API asks for: the control plane, `setup` and the CLI read it

Two folders, because a router must be able to check keys and must not be able to create them. A secret that exists is
never touched: a new pepper would make every key that was ever handed out useless.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

PEPPER_BYTES = 32
"""Source: the pepper is an HMAC-SHA-256 key, and 32 bytes is that function's output and recommended key size."""


def write_once(path: Path, content: bytes) -> bool:
    """Creates a file only its owner can read, whole or not at all.

    Args:
        path: Where.
        content: What.

    Returns:
        False when the file was there already and was left alone.
    """
    if path.exists():
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return True


def main() -> int:
    """Writes what is missing and says so, without ever showing a secret."""
    for folder, name, content in (
        ("PEPPER_DIR", "key-pepper", secrets.token_bytes(PEPPER_BYTES)),
        ("ADMIN_DIR", "admin-token", secrets.token_urlsafe(32).encode()),
    ):
        path = Path(os.environ[folder]) / name
        print(f"{path}: {'created' if write_once(path, content) else 'kept'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
