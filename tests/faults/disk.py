"""A small disk that can run full: a tmpfs with a size."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def missing_for_mounts() -> str | None:
    """Says why this process cannot mount a tmpfs; None where it can."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "mounting needs root"
    return None


class SmallDisk:
    """A tmpfs at a folder, which is made where it is missing.

    Args:
        folder: Where it is mounted.
        size_bytes: How much it holds.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._folder = folder
        self._filler = folder / "filler"
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={size_bytes},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, timeout=10)

    def fill(self) -> None:
        """Leaves no block free."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                return

    def free(self) -> None:
        """Gives the space back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it, also from under a process that still uses it."""
        subprocess.run(["umount", "--lazy", str(self._folder)], check=False, timeout=10)
