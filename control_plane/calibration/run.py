"""One calibration, carried out by the leader from where it stands to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from common import keys
from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.store import Epoch
from control_plane.calibration.bench import Bench, OpenBench
from control_plane.calibration.core import record
from control_plane.calibration.core.choose import Wanted, candidates
from control_plane.calibration.held import HeldRecord
from control_plane.calibration.publish import Ending, Publisher
from control_plane.core.activation import profile_in_force
from control_plane.profiles import StoredProfiles
from control_plane.records import ATTEMPTS, Tables
from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import (
    ConflictError,
    FailedPreconditionError,
    FairleadError,
    InvalidArgumentError,
    NotFoundError,
    NotLeaderError,
    Reason,
)
from model_units.calibration.outcome import Outcome
from model_units.cost import CostProfile

log = get_logger(__name__)

ChooseReplica = Callable[[Sequence[engine_pb2.Replica]], Awaitable[engine_pb2.Replica]]

TAKE_MAX_S: Final = 120.0
"""A calibration waits this long for a replica it can take: longer than an agent needs to notice a dead leader."""

_LOOK_S: Final = 1.0


class _StopError(Exception):
    """The calibration cannot go on."""

    def __init__(self, state: pb.CalibrationState.ValueType, detail: str) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail


class Run:
    """Carries out one calibration.

    Args:
        held: Its record.
        epoch: Of this leader.
        tables: Models and replicas.
        profiles: What is in force.
        publisher: Ends it.
        open_bench: Sets a replica aside.
        choose: Picks one of several replicas.
        clock: Times waits.
    """

    def __init__(
        self,
        held: HeldRecord,
        epoch: Epoch,
        *,
        tables: Tables,
        profiles: StoredProfiles,
        publisher: Publisher,
        open_bench: OpenBench,
        choose: ChooseReplica,
        clock: Clock,
    ) -> None:
        self._held = held
        self._epoch = epoch
        self._tables = tables
        self._profiles = profiles
        self._publisher = publisher
        self._open_bench = open_bench
        self._choose = choose
        self._clock = clock
        self._failures: dict[str, str] = {}  # by replica id, why
        self._before: CostProfile | None = None

    @property
    def _calibration(self) -> pb.Calibration:
        return self._held.calibration

    async def carry_out(self) -> None:
        """Measures and ends the calibration, one way or another.

        Raises:
            TakenError: It was paused or deleted meanwhile.
            NotLeaderError: This instance does not lead any more.
            UnavailableError: The store was away for long; whoever leads then goes on.
        """
        try:
            await self._end(await self._measure())
        except _StopError as stop:
            record.end(self._calibration, stop.state, stop.detail)
            await self._held.save()
        log.info(
            "calibration ended",
            calibration=self._calibration.calibration_id,
            state=pb.CalibrationState.Name(self._calibration.state),
            detail=self._calibration.detail,
            engine_s=round(self._calibration.engine_s, 1),
        )

    async def _measure(self) -> Outcome:
        """Measures to the end, on another replica if the first one fails."""
        waiting_until_ns = self._clock.monotonic_ns() + round(TAKE_MAX_S * NS_PER_S)
        while True:
            replica = await self._take(waiting_until_ns)
            record.begin_on(self._calibration, replica, self._epoch)
            await self._held.save()
            measuring = False
            try:
                async with self._open_bench(replica, self._calibration.calibration_id) as bench:
                    measuring = True
                    return await self._measure_on(bench)
            except NotLeaderError:
                raise
            except InvalidArgumentError as error:
                raise _StopError(record.FAILED, f"replica {replica.replica_id}: {error.message}") from error
            except FailedPreconditionError as error:
                if measuring:
                    raise _StopError(record.FAILED, f"replica {replica.replica_id}: {error.message}") from error
                # Somebody else has it, or its state has changed since it was read: no fault of the replica's.
                if self._clock.monotonic_ns() > waiting_until_ns:
                    raise _StopError(record.PAUSED, f"replica {replica.replica_id}: {error.message}") from error
                await asyncio.sleep(_LOOK_S)
            except FairleadError as error:
                if error.reason is Reason.STORE_UNAVAILABLE:
                    raise
                await self._note_failure(replica.replica_id, error.message)

    async def _note_failure(self, replica_id: str, message: str) -> None:
        self._failures[replica_id] = message
        log.warning("replica failed while measured", replica=replica_id, error=message)
        why = "; ".join(f"replica {name} failed: {text}" for name, text in self._failures.items())
        if len(self._failures) > 1:
            raise _StopError(record.PAUSED, why)
        self._calibration.detail = f"{why}; looks for another replica"
        await self._held.save()

    async def _take(self, waiting_until_ns: int) -> engine_pb2.Replica:
        """A replica to measure on: the one of before where it can be had, else the one with the least to do."""
        while True:
            model = await self._model()
            replicas = [stored.record for stored in await self._tables.replicas.list()]
            before = next((each for each in replicas if each.replica_id == self._calibration.replica_id), None)
            # A leader that died has left it so; the agent notices within seconds, or a minute if it only froze.
            left_behind = before is not None and before.state == engine_pb2.REPLICA_STATE_CALIBRATING
            late = self._clock.monotonic_ns() > waiting_until_ns
            try:
                free = candidates(Wanted.of(self._calibration, model), replicas, self._failures.keys())
            except FairleadError as error:
                if late or self._failures:
                    reasons = [f"replica {name} failed: {text}" for name, text in self._failures.items()]
                    raise _StopError(record.PAUSED, "; ".join([*reasons, error.message])) from error
            else:
                if before is not None and any(each.replica_id == before.replica_id for each in free):
                    return before
                if late or self._failures or not left_behind:
                    return await self._choose(free)
            await asyncio.sleep(_LOOK_S)

    async def _model(self) -> admin_pb2.Model:
        stored = await self._tables.models.find(keys.model(self._calibration.model_id))
        if stored is None:
            raise _StopError(record.FAILED, f"model {self._calibration.model_id!r} was deleted")
        try:
            self._before = (await self._profiles.catalogue()).get(profile_in_force(stored.record))
        except NotFoundError:
            self._before = None
        return stored.record

    async def _measure_on(self, bench: Bench) -> Outcome:
        """One load after the other, each stored before the next; what is stored already is not put again."""
        calibrator = record.calibrator(self._calibration)
        before = [(load, result) for _, load, result in record.experiments(self._calibration)]
        try:
            await asyncio.to_thread(calibrator.restore, before)
        except ValueError as error:
            raise _StopError(record.PAUSED, f"{error} (start with fresh)") from error
        while True:
            outcome = await asyncio.to_thread(calibrator.outcome)
            profile = record.draft(self._calibration, outcome, self._before, self._day())
            record.show_progress(self._calibration, calibrator.progress, profile)
            await self._held.save()
            load = await asyncio.to_thread(calibrator.next)
            if load is None:
                return outcome
            traffic_class = calibrator.traffic_class
            result = await bench.measure(load)
            await asyncio.to_thread(calibrator.record, result)
            record.add_experiment(self._calibration, traffic_class, load, result)

    async def _end(self, outcome: Outcome) -> None:
        """Publishes or refuses, all in one commit."""
        if not self._calibration.HasField("profile"):
            why = "; ".join(outcome.objections) or "the coefficients are none that could be charged"
            raise _StopError(record.FAILED, f"no profile could be fitted: {why}")
        for _ in range(ATTEMPTS):
            ending = await self._ending(outcome)
            if await self._held.save(ending.expects, ending.puts):
                return
        raise _StopError(record.REFUSED, "others keep changing the model at the same time: publish it by hand")

    async def _ending(self, outcome: Outcome) -> Ending:
        options = self._calibration.options
        if not outcome.acceptable and not options.force:
            return self._publisher.refusal(self._calibration, outcome.objections)
        try:
            return await self._publisher.publication(self._calibration, keep_active=options.keep_active)
        except NotFoundError as error:
            raise _StopError(record.FAILED, f"model {self._calibration.model_id!r} was deleted") from error
        except (FailedPreconditionError, ConflictError) as error:
            return self._publisher.refusal(self._calibration, [error.message])

    def _day(self) -> str:
        return datetime.fromtimestamp(self._clock.wall_ns() / NS_PER_S, UTC).date().isoformat()
