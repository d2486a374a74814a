"""Requests that are no generations: what is known is looked up, by a task of its own, and answered whole."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from common.rpc import as_fairlead_error
from data_plane.gateway import errors, replies
from data_plane.relay.http1.calls import HttpCall
from data_plane.relay.http1.requests import Fault


class Answered:
    """A call that has its answer already; see Served."""

    def on_body(self, body: bytes) -> None:
        """See Served."""

    def on_fault(self, fault: Fault) -> None:
        """See Served."""

    def on_gone(self) -> None:
        """See Served."""

    def on_writable(self) -> None:
        """See Served."""


class Lookup(Answered):
    """A call that is answered as soon as what it asks for is found. Whatever body it has is left aside.

    Args:
        call: The call.
        finding: Finds the answer, JSON.
    """

    def __init__(self, call: HttpCall, finding: Coroutine[Any, Any, bytes]) -> None:
        self._call = call
        self._task = asyncio.get_running_loop().create_task(self._answer(finding))

    def on_fault(self, fault: Fault) -> None:
        """See Served."""
        self._task.cancel()
        body = errors.of_fault(fault.status, fault.message, request_id=None)
        replies.refused(self._call, fault.status, body, None, b"")

    def on_gone(self) -> None:
        """See Served."""
        self._task.cancel()

    async def _answer(self, finding: Coroutine[Any, Any, bytes]) -> None:
        call = self._call
        try:
            body = await finding
        except Exception as error:  # noqa: BLE001  # the boundary: nothing may leak, everything is logged
            replies.failed(call, as_fairlead_error(error, call.path), None)
        else:
            replies.found(call, body, None)
