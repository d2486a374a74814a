"""The replica set aside for a calibration: no tenant's requests, one load after the other, and back to work.

The conversation is one gRPC stream. However it ends (the leader is done, dies or falls silent, the engine fails, the
replica is told to drain), the replica serves again unless something else keeps it from serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from common.logs import get_logger
from engines.agent.dispatcher import Dispatcher
from engines.agent.notices import Notices
from engines.agent.record import ReplicaRecord, State
from engines.agent.supervisor import Supervisor
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import DeadlineExceededError, InvalidArgumentError, NotFoundError, Reason, UnavailableError
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.loads import load_from_proto, measurement_to_proto

log = get_logger(__name__)
R = TypeVar("R")

Measure = Callable[[LoadSpec], Awaitable[LoadResult]]
"""Puts a load on the engine and says what it came to; raises UnavailableError when the engine fails."""

VACATE_MAX_S: Final = 600.0
"""Requests in flight get this long to end by themselves before the calibration gives up."""

SILENCE_MAX_S: Final = 60.0
"""A leader that sends nothing for this long is frozen or gone: the replica goes back to work."""


class Bench:
    """Calibrations of this replica, at most one at a time.

    Args:
        supervisor: Sets the replica aside and puts it back.
        dispatcher: Says when the replica is idle.
        record: What the replica is, and its state.
        measure: Puts a load on the engine.
        changed: Told of every change of the record.
        silence_max_s: As `SILENCE_MAX_S`.
    """

    def __init__(
        self,
        *,
        supervisor: Supervisor,
        dispatcher: Dispatcher,
        record: ReplicaRecord,
        measure: Measure,
        changed: Notices,
        silence_max_s: float = SILENCE_MAX_S,
    ) -> None:
        self._supervisor = supervisor
        self._dispatcher = dispatcher
        self._record = record
        self._measure = measure
        self._changed = changed
        self._silence_max_s = silence_max_s

    async def serve(
        self, requests: AsyncIterator[engine_pb2.CalibrateRequest]
    ) -> AsyncGenerator[engine_pb2.CalibrateResponse]:
        """One conversation, from the reservation to its end.

        Args:
            requests: See EngineService.Calibrate.

        Yields:
            One empty answer once the replica is free of other work, then one measurement per load.

        Raises:
            NotFoundError: The agent at this address is another replica.
            FailedPreconditionError: The replica is being calibrated already, or does not serve.
            InvalidArgumentError: A message is wrong; it is named.
            UnavailableError: The engine failed, or the replica was told to drain.
            DeadlineExceededError: Requests in flight did not end, or the caller fell silent.
        """
        first = await self._hear(requests)
        if first is None:
            return
        self._check_first(first)
        self._supervisor.reserve()
        log.info("calibrating", replica=self._record.replica_id, calibration=first.calibration_id)
        restarts, loads = self._record.described.engine_restarts, 0
        try:
            await self._unless_lost(self._vacate(), restarts)
            yield engine_pb2.CalibrateResponse()
            while (request := await self._unless_lost(self._hear(requests), restarts)) is not None:
                load = load_from_proto(request.load)
                self._check_fits(load)
                result = await self._unless_lost(self._measure(load), restarts)
                loads += 1
                yield engine_pb2.CalibrateResponse(measurement=measurement_to_proto(result))
        finally:
            self._supervisor.release()
            log.info("calibrated", replica=self._record.replica_id, calibration=first.calibration_id, loads=loads)

    def _check_first(self, first: engine_pb2.CalibrateRequest) -> None:
        if first.replica_id != self._record.replica_id:
            raise NotFoundError(
                f"the replica at this address is {self._record.replica_id!r}, not {first.replica_id[:200]!r}",
                reason=Reason.UNKNOWN_REPLICA,
            )
        if first.HasField("load"):
            raise InvalidArgumentError("the first message sets the replica aside; it holds no load", field="load")

    def _check_fits(self, load: LoadSpec) -> None:
        replica = self._record.described
        if load.concurrency > max(1, replica.sequences_max):
            raise InvalidArgumentError(
                f"load.concurrency {load.concurrency} must be 1 to {replica.sequences_max}, "
                "the sequences this engine runs at once",
                field="load.concurrency",
            )
        longest = max(inputs + outputs for inputs, outputs in load.lengths)
        if longest > replica.context_tokens:
            raise InvalidArgumentError(
                f"load.lengths holds a request of {longest} tokens; prompt and answer have room for "
                f"{replica.context_tokens}",
                field="load.lengths",
            )

    async def _hear(self, requests: AsyncIterator[engine_pb2.CalibrateRequest]) -> engine_pb2.CalibrateRequest | None:
        """The next message, or None at the end of the stream."""
        try:
            async with asyncio.timeout(self._silence_max_s):
                return await anext(requests, None)
        except TimeoutError:
            raise DeadlineExceededError(
                f"the caller sent nothing for {self._silence_max_s:g} s; the replica goes back to work"
            ) from None

    async def _vacate(self) -> None:
        try:
            async with asyncio.timeout(VACATE_MAX_S):
                await self._dispatcher.idle()
        except TimeoutError:
            raise DeadlineExceededError(
                f"{self._dispatcher.in_flight} requests are still running after {VACATE_MAX_S:g} s; "
                "calibrate another replica or come back when it has less to do"
            ) from None

    async def _unless_lost(self, work: Awaitable[R], restarts: int) -> R:
        """Awaits `work`; ends it with an error when the replica is drained or its engine replaced meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            with self._changed.listen() as changed:
                while not task.done():
                    changed.clear()
                    self._require_here(restarts)
                    woken = asyncio.ensure_future(changed.wait())
                    try:
                        await asyncio.wait({task, woken}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        woken.cancel()
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _require_here(self, restarts: int) -> None:
        if self._record.draining:
            raise UnavailableError("the replica is draining; calibrate another one", reason=Reason.SHUTTING_DOWN)
        if self._record.state != State.REPLICA_STATE_CALIBRATING or self._record.described.engine_restarts != restarts:
            raise UnavailableError(
                "the replica's engine died or hung and is being replaced; calibrate another one",
                reason=Reason.REPLICA_LOST,
            )
