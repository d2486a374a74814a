"""Keys of engines: where they are sent, and files that hold none."""

from __future__ import annotations

from typing import Any

import pytest

from common.clock import SystemClock
from data_plane.router.dialects.credentials import Credentials
from data_plane.router.dialects.openai import OpenAIUpstream
from fairlead.errors import (
    InvalidArgumentError,
    Reason,
)
from tests.unit.router.dialect_lab import start
from tests.unit.router.openai_lab import WHOLE, bench, saying


def keys(tmp_path: Any, origin: str, text: str = "sk-1\n") -> Any:
    (tmp_path / "key").write_text(text)
    settings_file = tmp_path / "credentials.toml"
    settings_file.write_text(f'[mine]\norigin = "{origin}"\nkey_file = "{tmp_path / "key"}"\n')
    return settings_file


async def test_a_key_goes_to_its_own_origin_and_nowhere_else(tmp_path: Any) -> None:
    """Proves that a record that names another address, or other credentials, never gets a key."""
    async with bench(saying(*WHOLE)) as made, bench(saying(*WHOLE)) as stranger:
        file = keys(tmp_path, f"http://127.0.0.1:{made.server.port}")
        upstream = OpenAIUpstream(made.pool, Credentials.load(file), SystemClock())
        made.replica.engine_credentials = stranger.replica.engine_credentials = "mine"
        noted = start(upstream, made.replica)
        await noted.ended()
        assert noted.ends == [None]
        assert b"\r\nauthorization: bearer sk-1\r\n" in made.server.conversations[0].requests[0][0]
        noted = start(upstream, stranger.replica)
        await noted.ended()
        assert noted.failure.reason is Reason.ENGINE_MISSING
        assert not stranger.server.conversations
        made.replica.engine_credentials = "other"
        noted = start(upstream, made.replica)
        await noted.ended()
        assert noted.failure.reason is Reason.ENGINE_MISSING
        assert "sk-1" not in noted.failure.message


@pytest.mark.parametrize(
    ("origin", "key"),
    [("http://h/v1", "k"), ("h", "k"), ("http://h", ""), ("http://h", "a b"), ("http://h", "a\r\nx: y")],
)
def test_wrong_credentials_are_refused_at_the_start(tmp_path: Any, origin: str, key: str) -> None:
    """Shows that the name is in the message and the key is not."""
    with pytest.raises(InvalidArgumentError, match=r"mine|URL|http") as caught:
        Credentials.load(keys(tmp_path, origin, key))
    assert "x: y" not in caught.value.message
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        Credentials.load(tmp_path / "nowhere.toml")
