"""Whoever leads carries out the calibrations that are asked for, also those another leader began."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from common import keys
from common.clock import Clock
from common.leadership import Election
from common.logs import get_logger
from common.mirror import Mirror
from common.store import Epoch
from control_plane.calibration.bench import OpenBench, open_bench
from control_plane.calibration.core import record
from control_plane.calibration.held import HeldRecord, TakenError
from control_plane.calibration.least_busy import least_busy
from control_plane.calibration.publish import Publisher
from control_plane.calibration.run import ChooseReplica, Run
from control_plane.profiles import StoredProfiles
from control_plane.records import Tables
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import NotLeaderError, UnavailableError

log = get_logger(__name__)

RUNNING_MAX: Final = 4
"""Calibrations at once: each keeps one replica from working."""

_LOOK_S: Final = 1.0


class CalibrationRunner:
    """Carries out calibrations while this instance leads.

    Args:
        tables: Models and replicas.
        calibrations: What is asked for.
        election: This instance's candidacy.
        profiles: What is in force.
        publisher: Ends calibrations.
        clock: Both kinds of time.
        open_bench: Sets a replica aside.
        choose: Picks one of several replicas.
    """

    def __init__(
        self,
        tables: Tables,
        calibrations: Mirror[pb.Calibration],
        election: Election,
        *,
        profiles: StoredProfiles,
        publisher: Publisher,
        clock: Clock,
        open_bench: OpenBench = open_bench,
        choose: ChooseReplica = least_busy,
    ) -> None:
        self._tables = tables
        self._calibrations = calibrations
        self._election = election
        self._profiles = profiles
        self._publisher = publisher
        self._clock = clock
        self._open_bench = open_bench
        self._choose = choose
        self._changed = asyncio.Event()
        calibrations.on_change(lambda _key, _value: self._changed.set())

    async def run(self) -> None:
        """Leads whenever elected, until cancelled."""
        async for epoch in self._election.terms():
            await self._lead(epoch)

    async def _lead(self, epoch: Epoch) -> None:
        running: dict[str, asyncio.Task[None]] = {}
        try:
            await self._calibrations.wait_synced()
            while self._election.epoch == epoch:
                self._changed.clear()
                self._look(running, epoch)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._changed.wait()
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    def _look(self, running: dict[str, asyncio.Task[None]], epoch: Epoch) -> None:
        """Begins what waits, ends what was paused."""
        known = dict(self._calibrations.items)
        for calibration_id, task in list(running.items()):
            calibration = known.get(calibration_id)
            if task.done():
                del running[calibration_id]
            elif calibration is None or calibration.state not in record.ACTIVE:
                task.cancel()
        active = [each for each in known.values() if each.state in record.ACTIVE]
        for calibration in sorted(active, key=lambda each: each.create_time.ToNanoseconds()):
            calibration_id = calibration.calibration_id
            if calibration_id not in running and len(running) < RUNNING_MAX:
                task = asyncio.create_task(self._carry_out(calibration_id, epoch), name=f"calibrate {calibration_id}")
                task.add_done_callback(lambda _task: self._changed.set())
                running[calibration_id] = task

    async def _carry_out(self, calibration_id: str, epoch: Epoch) -> None:
        held: HeldRecord | None = None
        try:
            entry = await self._tables.store.get(keys.calibration(calibration_id))
            if entry is None:
                return
            held = HeldRecord(self._tables.store, entry, self._election.fence, self._clock)
            if held.calibration.state in record.ACTIVE:
                await self._run(held, epoch).carry_out()
        except (TakenError, NotLeaderError):
            log.info("calibration left to others", calibration=calibration_id)
        except UnavailableError as error:
            log.warning("calibration interrupted", calibration=calibration_id, error=error.message)
        except Exception as error:
            log.error("calibration failed", calibration=calibration_id, exc_info=error)
            if held is not None:
                await self._give_up(held)

    def _run(self, held: HeldRecord, epoch: Epoch) -> Run:
        return Run(
            held,
            epoch,
            tables=self._tables,
            profiles=self._profiles,
            publisher=self._publisher,
            open_bench=self._open_bench,
            choose=self._choose,
            clock=self._clock,
        )

    async def _give_up(self, held: HeldRecord) -> None:
        """A defect must not be tried again and again."""
        record.end(held.calibration, record.FAILED, "a defect of the platform; the control plane's log has the details")
        with contextlib.suppress(TakenError, NotLeaderError, UnavailableError):
            await held.save()
