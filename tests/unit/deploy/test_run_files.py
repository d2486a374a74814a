"""What the launcher keeps in its run directory: the lock and the secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deploy.local import secret_files
from deploy.local.runlock import AlreadyRunningError, run_lock


def test_second_launcher_is_told_about_the_first(tmp_path: Path) -> None:
    """The refusal names the process, the addresses, and how to run another platform beside it."""
    with run_lock(tmp_path):
        addresses = {"http": "http://127.0.0.1:1", "grpc": "127.0.0.1:2", "admin": "127.0.0.1:3"}
        (tmp_path / "platform.json").write_text(json.dumps(addresses))
        with pytest.raises(AlreadyRunningError) as refusal, run_lock(tmp_path):
            pass
    text = str(refusal.value)
    assert all(address in text for address in addresses.values())
    assert f"process {os.getpid()}" in text
    assert "RUN_DIR=" in text


def test_lock_is_free_afterwards(tmp_path: Path) -> None:
    """A run that ended leaves nothing in the way of the next."""
    for _ in range(2):
        with run_lock(tmp_path):
            pass


def test_launcher_that_still_starts_is_said_to(tmp_path: Path) -> None:
    """Before platform.json exists there are no addresses to tell."""
    with run_lock(tmp_path), pytest.raises(AlreadyRunningError, match="still starting"), run_lock(tmp_path):
        pass


def test_secrets_are_private_and_kept(tmp_path: Path) -> None:
    """Made once with mode 0600, the same ever after."""
    files = secret_files.prepare(tmp_path / "secrets")
    first = files.pepper.read_bytes(), files.admin_token.read_bytes()
    assert len(first[0]) >= 32
    again = secret_files.prepare(tmp_path / "secrets")
    assert (again.pepper.read_bytes(), again.admin_token.read_bytes()) == first
    assert {oct(path.stat().st_mode & 0o777) for path in (files.pepper, files.admin_token)} == {"0o600"}
    assert first[0] != first[1]


def test_new_pepper_forgets_keys_made_under_the_old_one(tmp_path: Path) -> None:
    """Keys that no longer open anything are not offered again."""
    files = secret_files.prepare(tmp_path)
    secret_files.write_private(files.demo_keys, b'{"acme": "fl-a-b"}')
    assert secret_files.read_demo_keys(files) == {"acme": "fl-a-b"}
    files.pepper.unlink()
    assert secret_files.read_demo_keys(secret_files.prepare(tmp_path)) == {}


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff"])
def test_damaged_demo_keys_are_none(tmp_path: Path, content: bytes) -> None:
    """A damaged file means new keys, not a crash."""
    files = secret_files.prepare(tmp_path)
    files.demo_keys.write_bytes(content)
    assert secret_files.read_demo_keys(files) == {}
