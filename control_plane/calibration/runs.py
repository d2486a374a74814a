"""What an administrator does with calibrations; the leader's runner carries them out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, cast

from common import keys
from common.clock import NS_PER_S, Clock
from common.store import CompactedError, Expect
from control_plane.calibration.core import record
from control_plane.calibration.core.choose import Wanted, candidates
from control_plane.calibration.core.options import filled_in, resumed, same_measurement
from control_plane.calibration.publish import Publisher
from control_plane.calibration.report import render
from control_plane.core import check
from control_plane.core.activation import profile_in_force
from control_plane.profiles import StoredProfiles
from control_plane.records import GUARDS, Records, Stored, Tables, stored_bytes, until_stored
from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, Reason
from model_units.calibration.calibrator import CORE_VERSION

KEPT_MAX: Final = 10
"""Calibrations of one model that are kept; the oldest that has ended makes room."""

# A watch can lose events and never say so.
_LOOK_AGAIN_S: Final = 10.0

CalibrationRecord = Stored[pb.Calibration]


class Calibrations:
    """Starts, shows, pauses and publishes calibrations.

    Args:
        tables: Models and replicas.
        profiles: Whose objective is kept where none is named.
        publisher: Publishes refused ones.
        clock: Names and dates them.
    """

    def __init__(self, tables: Tables, profiles: StoredProfiles, publisher: Publisher, clock: Clock) -> None:
        self._tables = tables
        self._profiles = profiles
        self._publisher = publisher
        self._clock = clock
        self._records = Records(tables.store, keys.CALIBRATIONS, pb.Calibration, "calibration", Reason.NOT_FOUND)

    async def start(self, request: pb.StartCalibrationRequest) -> pb.Calibration:
        """See CalibrationService."""
        model_id = check.model_id(request.model_id)

        async def attempt() -> pb.Calibration | None:
            model = await self._tables.models.require(keys.model(model_id))
            guard = f"{GUARDS}calibrations/{model_id}"
            unmoved = await self._tables.guard(guard)
            mine = await self._of(model_id)
            _refuse_second(mine)
            options = filled_in(request.options, await self._objective_ms(model.record))
            goes_on = None if request.fresh else _to_go_on(mine, options, request.options)
            calibration = self._resumed(goes_on.record, options, request) if goes_on else self._new(model_id, options)
            replicas = [stored.record for stored in await self._tables.replicas.list()]
            candidates(Wanted.of(calibration, model.record), replicas)
            if request.validate_only:
                return calibration
            key = keys.calibration(calibration.calibration_id)
            here = goes_on.unchanged() if goes_on else Expect.absent(key)
            others = [stored for stored in mine if stored is not goes_on]
            puts = {key: stored_bytes(calibration), guard: b"", **_superseded(others, calibration.calibration_id)}
            deletes = [stored.entry.key for stored in _surplus(others)]
            puts = {name: value for name, value in puts.items() if name not in deletes}
            revision = await self._tables.store.commit([model.exists(), unmoved, here], puts, deletes)
            return self._stored(calibration, revision)

        return await until_stored(attempt)

    async def get(self, request: pb.GetCalibrationRequest) -> pb.Calibration:
        """See CalibrationService."""
        return (await self._find(request)).record

    async def watch(self, request: pb.GetCalibrationRequest) -> AsyncIterator[pb.Calibration]:
        """See CalibrationService."""
        stored = await self._find(request)
        while True:
            yield stored.record
            if stored.record.state not in record.ACTIVE:
                return
            stored = await self._next(stored)

    async def list(self, request: pb.ListCalibrationsRequest) -> pb.ListCalibrationsResponse:
        """See CalibrationService."""
        found = await (self._of(check.model_id(request.model_id)) if request.model_id else self._records.list())
        calibrations = [stored.record for stored in sorted(found, key=_created, reverse=True)]
        for calibration in calibrations:
            calibration.ClearField("experiments")
        return pb.ListCalibrationsResponse(calibrations=calibrations)

    async def pause(self, request: pb.PauseCalibrationRequest) -> pb.Calibration:
        """See CalibrationService."""

        async def attempt() -> pb.Calibration | None:
            stored = await self._require(request.calibration_id)
            calibration = stored.record
            if calibration.state == record.PAUSED:
                return calibration
            if calibration.state not in record.ACTIVE:
                raise FailedPreconditionError(
                    f"calibration {calibration.calibration_id!r} {record.in_words(calibration)}: it cannot be paused"
                )
            record.end(calibration, record.PAUSED, "paused by an administrator; start it again to go on")
            return await self._replace(stored)

        return await until_stored(attempt)

    async def report(self, request: pb.GetCalibrationRequest) -> pb.CalibrationReport:
        """See CalibrationService."""
        calibration = (await self._find(request)).record
        return pb.CalibrationReport(html=await asyncio.to_thread(render, calibration))

    async def publish(self, request: pb.PublishCalibrationRequest) -> pb.Calibration:
        """See CalibrationService."""

        async def attempt() -> pb.Calibration | None:
            stored = await self._require(request.calibration_id)
            calibration = stored.record
            if calibration.state != record.REFUSED or not calibration.HasField("profile"):
                raise FailedPreconditionError(
                    f"calibration {calibration.calibration_id!r} {record.in_words(calibration)}: only a refused one "
                    "with a profile can be published"
                )
            ending = await self._publisher.publication(calibration, keep_active=request.keep_active)
            if request.validate_only:
                return calibration
            return await self._replace(stored, ending.expects, ending.puts)

        return await until_stored(attempt)

    async def _objective_ms(self, model: admin_pb2.Model) -> float:
        """Objective of the profile in force; 0 where there is none."""
        try:
            return (await self._profiles.catalogue()).get(profile_in_force(model)).tpot_objective_ms
        except NotFoundError:
            return 0.0

    def _new(self, model_id: str, options: pb.CalibrationOptions) -> pb.Calibration:
        now_ns = self._clock.wall_ns()
        moment = datetime.fromtimestamp(now_ns // NS_PER_S, UTC).strftime("%Y%m%dT%H%M%S")
        calibration = pb.Calibration(
            # No model's id holds an '@', so that one model's calibrations are listed by their prefix.
            calibration_id=f"{model_id}@{moment}-{now_ns % NS_PER_S // 1_000_000:03d}",
            model_id=model_id,
            options=options,
            state=record.PENDING,
            detail="waits for the leader to begin",
            core_version=CORE_VERSION,
        )
        calibration.create_time.FromNanoseconds(now_ns)
        calibration.update_time.FromNanoseconds(now_ns)
        return calibration

    def _resumed(
        self, paused: pb.Calibration, options: pb.CalibrationOptions, request: pb.StartCalibrationRequest
    ) -> pb.Calibration:
        calibration = pb.Calibration()
        calibration.CopyFrom(paused)
        calibration.options.CopyFrom(resumed(paused.options, options, request.options))
        calibration.state = record.PENDING
        calibration.detail = f"goes on after {len(paused.experiments)} loads; waits for the leader"
        calibration.update_time.FromNanoseconds(self._clock.wall_ns())
        return calibration

    async def _of(self, model_id: str) -> Sequence[CalibrationRecord]:
        return await self._records.list(f"{model_id}@")

    async def _require(self, calibration_id: str) -> CalibrationRecord:
        if not calibration_id or "/" in calibration_id:
            raise InvalidArgumentError("calibration_id must name a calibration", field="calibration_id")
        return await self._records.require(keys.calibration(calibration_id))

    async def _find(self, request: pb.GetCalibrationRequest) -> CalibrationRecord:
        if request.calibration_id:
            return await self._require(request.calibration_id)
        found = await self._of(check.model_id(request.model_id))
        if not found:
            raise NotFoundError(f"model {request.model_id!r} was never calibrated: `fairlead calibrate` starts it")
        return max(found, key=_created)

    async def _next(self, seen: CalibrationRecord) -> CalibrationRecord:
        """The calibration after its next change."""
        key = seen.entry.key
        while True:
            with contextlib.suppress(TimeoutError, CompactedError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    changes = cast(Any, self._tables.store.watch(key, after_revision=seen.entry.revision))
                    async with aclosing(changes):
                        async for batch in changes:
                            if any(change.key == key for change in batch):
                                break
            stored = await self._records.require(key)
            if stored.entry.revision != seen.entry.revision:
                return stored

    async def _replace(
        self,
        stored: CalibrationRecord,
        expects: Sequence[Expect] = (),
        puts: Mapping[str, bytes] = MappingProxyType({}),
    ) -> pb.Calibration | None:
        """Writes a changed record; None when somebody was faster."""
        calibration = stored.record
        calibration.update_time.FromNanoseconds(self._clock.wall_ns())
        revision = await self._tables.store.commit(
            [stored.unchanged(), *expects], {stored.entry.key: stored_bytes(calibration), **puts}
        )
        return self._stored(calibration, revision)

    def _stored(self, calibration: pb.Calibration, revision: int | None) -> pb.Calibration | None:
        if revision is None:
            return None
        calibration.etag = str(revision)
        return calibration


def _created(stored: CalibrationRecord) -> tuple[int, int]:
    return stored.record.create_time.ToNanoseconds(), stored.entry.create_revision


def _refuse_second(mine: Sequence[CalibrationRecord]) -> None:
    for stored in mine:
        if stored.record.state in record.ACTIVE:
            raise FailedPreconditionError(
                f"calibration {stored.record.calibration_id!r} of this model {record.in_words(stored.record)}: watch "
                "it, or pause it first"
            )


def _to_go_on(
    mine: Sequence[CalibrationRecord], options: pb.CalibrationOptions, asked: pb.CalibrationOptions
) -> CalibrationRecord | None:
    """The newest paused calibration whose measurements serve the new one."""
    fitting = [
        stored
        for stored in mine
        if stored.record.state == record.PAUSED
        and stored.record.core_version == CORE_VERSION
        and same_measurement(stored.record.options, options, asked)
    ]
    return max(fitting, key=_created, default=None)


def _superseded(others: Sequence[CalibrationRecord], calibration_id: str) -> dict[str, bytes]:
    """Paused ones that nobody will go on with: a model has one calibration at a time."""
    puts = {}
    for stored in others:
        if stored.record.state == record.PAUSED:
            ended = pb.Calibration()
            ended.CopyFrom(stored.record)
            record.end(ended, record.FAILED, f"given up for calibration {calibration_id}")
            puts[stored.entry.key] = stored_bytes(ended)
    return puts


def _surplus(others: Sequence[CalibrationRecord]) -> Sequence[CalibrationRecord]:
    """The oldest beyond what is kept beside the new one."""
    return sorted(others, key=_created, reverse=True)[KEPT_MAX - 1 :]
