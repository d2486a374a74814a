"""The end of a calibration that measured: profile, model, event and record in one commit, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common import keys
from common.clock import NS_PER_S, Clock
from common.store import Expect
from control_plane.calibration.core import record
from control_plane.core.activation import activation
from control_plane.core.happenings import WARNING, Happening
from control_plane.events import Events
from control_plane.profiles import StoredProfiles, activated, profile_entry
from control_plane.records import Tables, stored_bytes
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import FailedPreconditionError
from model_units.wire import profile_from_proto, profile_to_proto


@dataclass(frozen=True, slots=True)
class Ending:
    """What has to be committed beside the calibration's own record.

    Attributes:
        expects: Conditions.
        puts: Values.
    """

    expects: Sequence[Expect]
    puts: Mapping[str, bytes]


class Publisher:
    """Ends calibrations. Nothing here writes: whoever holds the record commits all of it at once.

    Args:
        tables: The records.
        profiles: Numbers new profiles.
        events: Told of activations and refusals.
        clock: Dates profiles.
    """

    def __init__(self, tables: Tables, profiles: StoredProfiles, events: Events, clock: Clock) -> None:
        self._tables = tables
        self._profiles = profiles
        self._events = events
        self._clock = clock

    async def publication(self, calibration: pb.Calibration, *, keep_active: bool) -> Ending:
        """Turns the record into a published one.

        Args:
            calibration: Its profile is given the next free version; changed in place.
            keep_active: Leave the profile that is in force.

        Returns:
            What to commit with the record; when somebody was faster, ask again.

        Raises:
            NotFoundError: The model is gone.
            FailedPreconditionError: The model runs on other hardware by now.
        """
        measured = pb.CostProfile()
        measured.CopyFrom(calibration.profile)
        measured.create_time.FromSeconds(self._clock.wall_ns() // NS_PER_S)
        profile = await self._profiles.numbered(profile_from_proto(measured))
        calibration.profile.CopyFrom(profile_to_proto(profile))
        puts = profile_entry(profile)
        expects = [Expect.absent(keys.profile(profile.profile_id))]
        model = await self._tables.models.require(keys.model(calibration.model_id))
        if keep_active:
            expects.append(model.exists())
            record.end(calibration, record.PUBLISHED, f"profile {profile.profile_id} is stored, not in force")
            return Ending(expects, puts)
        if model.record.engine.hardware not in ("", profile.hardware):
            raise FailedPreconditionError(
                f"model {calibration.model_id!r} runs on {model.record.engine.hardware!r} by now and was measured on "
                f"{profile.hardware!r}: calibrate it again"
            )
        changed = activation(model.record, profile.profile_id)
        record.end(calibration, record.PUBLISHED, f"profile {profile.profile_id} is published and in force")
        puts |= {model.entry.key: stored_bytes(changed)}
        puts |= self._events.entry(activated(changed, f" from calibration {calibration.calibration_id}"))
        return Ending([*expects, model.unchanged()], puts)

    def refusal(self, calibration: pb.Calibration, objections: Sequence[str]) -> Ending:
        """Turns the record into a refused one, its profile kept for whoever publishes it all the same."""
        why = "; ".join(objections)
        record.end(calibration, record.REFUSED, f"not published: {why}")
        happening = Happening(
            "CALIBRATION_REFUSED",
            WARNING,
            calibration.model_id,
            f"Calibration {calibration.calibration_id} was not published: {why}. Look at its report; publish it all "
            "the same or calibrate again.",
            {"calibration_id": calibration.calibration_id, "replica_id": calibration.replica_id},
        )
        return Ending((), self._events.entry(happening))
