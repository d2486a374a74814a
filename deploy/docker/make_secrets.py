"""Writes the platform's two secrets into their volumes, once; the first container `docker compose up` runs.

    PEPPER_DIR/key-pepper      what API keys are hashed with: the control plane and the routers read it
    ADMIN_DIR/admin-token      what the admin API asks for: the control plane and `setup` read it

Two folders, because a router must be able to check keys and must not be able to create them. A secret that exists is
never touched: a new pepper would make every key that was ever handed out useless.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from deploy.local.secret_files import PEPPER_BYTES, write_private


def main() -> int:
    """Writes what is missing and says so, without ever showing a secret."""
    for path, content in (
        (Path(os.environ["PEPPER_DIR"], "key-pepper"), secrets.token_bytes(PEPPER_BYTES)),
        (Path(os.environ["ADMIN_DIR"], "admin-token"), secrets.token_urlsafe(32).encode()),
    ):
        there = path.exists()
        if not there:
            write_private(path, content)
        print(f"{path}: {'kept' if there else 'created'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
