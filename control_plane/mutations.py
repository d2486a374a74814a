"""Mutations, each done once per request id, counted and logged; shared by the APIs that administrators call."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

from google.protobuf.message import Message

from common.clock import Clock
from common.logs import get_logger
from control_plane.core import check
from control_plane.core.remembered import Remembered
from control_plane.metrics import ControlPlaneMetrics
from fairlead.errors import FairleadError, InvalidArgumentError

log = get_logger(__name__)


class Mutation(Protocol):
    """What every mutating request has; most have validate_only too."""

    request_id: str

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:
        """See protobuf."""
        ...


Q = TypeVar("Q", bound=Mutation)
A = TypeVar("A", bound=Message)


class Mutations:
    """Does mutations and remembers their results.

    Args:
        clock: Ages remembered results.
        metrics: Counts mutations.
    """

    def __init__(self, clock: Clock, metrics: ControlPlaneMetrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._remembered: Remembered[Message] = Remembered()
        self._running: dict[tuple[str, str], tuple[bytes, asyncio.Task[Any]]] = {}

    async def run(self, method: str, request: Q, act: Callable[[Q], Awaitable[A]]) -> A:
        """Does a mutation once per request id; a caller that goes away does not leave it half done.

        Args:
            method: Its name, the same for every instance.
            request: As it came.
            act: Does it.

        Raises:
            InvalidArgumentError: The request id is wrong or was used for a different request.
            FairleadError: What `act` raised.
        """
        checks_only = bool(getattr(request, "validate_only", False))
        try:
            check.request_id(request.request_id)
            answer = await (act(request) if checks_only or not request.request_id else self._once(method, request, act))
        except FairleadError as error:
            self._metrics.mutations.labels(method, error.reason.value.lower()).inc()
            raise
        self._metrics.mutations.labels(method, "checked" if checks_only else "done").inc()
        if not checks_only:
            log.info("administered", method=method, request_id=request.request_id)
        return answer

    async def _once(self, method: str, request: Q, act: Callable[[Q], Awaitable[A]]) -> A:
        fingerprint = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        known = self._remembered.recall(method, request.request_id, fingerprint, self._clock.monotonic_ns())
        if known is not None:
            return cast(A, known)
        name = (method, request.request_id)
        fingerprint_running, task = self._running.get(name, (fingerprint, None))
        if fingerprint_running != fingerprint:
            raise InvalidArgumentError("request_id is in use for a different request right now", field="request_id")
        if task is None:
            task = asyncio.ensure_future(self._act(method, request, fingerprint, act))
            self._running[name] = (fingerprint, task)
            task.add_done_callback(lambda done: self._forget(name, done))
        return cast(A, await asyncio.shield(task))

    def _forget(self, name: tuple[str, str], done: asyncio.Task[Any]) -> None:
        del self._running[name]
        if not done.cancelled():
            # The caller may have gone away; then nobody else looks at the failure, and a retry meets it again.
            done.exception()

    async def _act(self, method: str, request: Q, fingerprint: bytes, act: Callable[[Q], Awaitable[A]]) -> A:
        answer = await act(request)
        self._remembered.remember(method, request.request_id, fingerprint, answer, self._clock.monotonic_ns())
        return answer
