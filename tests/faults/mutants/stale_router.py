"""A router whose mirrors list once: after that they only watch, also when the watch has lost its history."""

from __future__ import annotations

from typing import Any

from common.mirror import Mirror
from tests.faults import mutants

_list = Mirror._list


async def _list_once(self: Mirror[Any]) -> None:
    if not self._synced:
        await _list(self)


if __name__ == "__main__":
    Mirror._list = _list_once  # type: ignore[method-assign]
    mutants.run("data_plane.router")
