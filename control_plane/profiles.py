"""Cost profiles in the store: stored under a version of their own, put into force, taken back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from common import keys
from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.store import Entry, Expect, Store
from control_plane.core import check
from control_plane.core.activation import activation, profile_in_force, rollback
from control_plane.core.happenings import INFO, Happening
from control_plane.events import Events
from control_plane.records import Records, Stored, Tables, stored_bytes, until_stored
from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import FailedPreconditionError, InvalidArgumentError, Reason
from model_units.cost import CostProfile
from model_units.profiles import ProfileCatalogue, built_in_profiles
from model_units.slips import check_units
from model_units.wire import decode_profile, profile_from_proto, profile_to_proto

log = get_logger(__name__)


class StoredProfiles:
    """The profiles there are, read from the store whenever somebody asks: what was just stored is found.

    Args:
        store: Where the live ones are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def catalogue(self) -> ProfileCatalogue:
        """Those that ship and those in the store; a stored one that cannot be read is logged and left out."""
        listing = await self._store.list(keys.PROFILES)
        live = {}
        for entry in listing.entries:
            profile = _readable(entry)
            if profile is not None:
                live[profile.profile_id] = profile
        return built_in_profiles().with_live(live)

    async def numbered(self, profile: CostProfile) -> CostProfile:
        """The profile under the next free version of its (model, hardware); to be committed on that key's absence."""
        below = keys.PROFILES + f"{profile.model}/{profile.hardware}/"
        tails = [entry.key.removeprefix(below) for entry in (await self._store.list(below)).entries]
        # A value that cannot be read takes its version all the same.
        taken = max((int(tail) for tail in tails if tail.isdecimal()), default=0)
        version = max(taken + 1, built_in_profiles().next_version(profile.model, profile.hardware))
        return replace(profile, version=version, profile_id=f"{profile.model}/{profile.hardware}/{version}")


def _readable(entry: Entry) -> CostProfile | None:
    try:
        profile = decode_profile(entry.value)
    except Exception as error:  # noqa: BLE001  # whatever is wrong with one value must not hide the others
        log.error("stored profile refused", key=entry.key, error=repr(error))
        return None
    if keys.profile(profile.profile_id) != entry.key:
        log.error("stored profile refused", key=entry.key, error=f"it says it is {profile.profile_id}")
        return None
    return profile


def profile_entry(profile: CostProfile) -> dict[str, bytes]:
    """Key and value of a profile; to be committed on `Expect.absent` of the key."""
    return {keys.profile(profile.profile_id): profile_to_proto(profile).SerializeToString(deterministic=True)}


def activated(model: admin_pb2.Model, why: str) -> Happening:
    """The event of a profile that was put into force, from the model as it is to be stored."""
    return Happening(
        "PROFILE_ACTIVATED",
        INFO,
        model.model_id,
        f"Profile {model.profile_id} is in force{why}; roll back to return to {model.previous_profile_id or 'none'}.",
        _facts(model),
    )


def _facts(model: admin_pb2.Model) -> dict[str, str]:
    return {"profile_id": model.profile_id, "previous_profile_id": model.previous_profile_id}


class Profiles:
    """What an administrator does with profiles.

    Args:
        tables: The records.
        stored: The profiles.
        events: Told of every change of what is in force.
        clock: Dates imports.
    """

    def __init__(self, tables: Tables, stored: StoredProfiles, events: Events, clock: Clock) -> None:
        self._tables = tables
        self._stored = stored
        self._events = events
        self._clock = clock
        self._drift = Records(tables.store, keys.DRIFT, pb.DriftStatus, "drift status of a model", Reason.NOT_FOUND)

    async def list(self, request: pb.ListProfilesRequest) -> pb.ListProfilesResponse:
        """See CalibrationService."""
        catalogue = await self._stored.catalogue()
        users: dict[str, list[str]] = {}
        for stored in await self._tables.models.list():
            users.setdefault(profile_in_force(stored.record), []).append(stored.record.model_id)
        profiles = [catalogue.get(profile_id) for profile_id in catalogue.ids]
        wanted = [p for p in profiles if request.model in ("", p.model) and request.hardware in ("", p.hardware)]
        return pb.ListProfilesResponse(
            profiles=[
                pb.ListedProfile(
                    profile=profile_to_proto(profile),
                    built_in=catalogue.is_built_in(profile.profile_id),
                    active_for=sorted(users.get(profile.profile_id, ())),
                )
                # By version, not by text: 10 comes after 9.
                for profile in sorted(wanted, key=lambda p: (p.model, p.hardware, p.version))
            ]
        )

    async def get(self, request: pb.GetProfileRequest) -> pb.CostProfile:
        """See CalibrationService."""
        return profile_to_proto((await self._stored.catalogue()).get(request.profile_id))

    async def import_(self, request: pb.ImportProfileRequest) -> pb.CostProfile:
        """See CalibrationService."""
        given = pb.CostProfile()
        given.CopyFrom(request.profile)
        # Set here and not by the file; the check wants them to agree.
        given.version, given.profile_id = 1, f"{given.model}/{given.hardware}/1"
        if not given.HasField("create_time"):
            given.create_time.FromSeconds(self._clock.wall_ns() // NS_PER_S)
        profile = profile_from_proto(given)
        _check_key(profile)
        check_units(profile)

        async def attempt() -> pb.CostProfile | None:
            new = await self._stored.numbered(profile)
            if not request.validate_only:
                key = keys.profile(new.profile_id)
                if await self._tables.store.commit([Expect.absent(key)], profile_entry(new)) is None:
                    return None
            return profile_to_proto(new)

        return await until_stored(attempt)

    async def activate(self, request: pb.ActivateProfileRequest) -> admin_pb2.Model:
        """See CalibrationService."""
        key = keys.model(check.model_id(request.model_id))

        async def attempt() -> admin_pb2.Model | None:
            stored = await self._tables.models.require(key)
            stored.check_etag(request.etag)
            profile = (await self._stored.catalogue()).get(request.profile_id)
            _check_hardware(stored.record, profile)
            changed = activation(stored.record, profile.profile_id)
            happening = activated(changed, ", put there by an administrator")
            return await self._commit(stored, changed, happening, validate_only=request.validate_only)

        return await until_stored(attempt)

    async def rollback(self, request: pb.RollbackProfileRequest) -> admin_pb2.Model:
        """See CalibrationService."""
        key = keys.model(check.model_id(request.model_id))

        async def attempt() -> admin_pb2.Model | None:
            stored = await self._tables.models.require(key)
            stored.check_etag(request.etag)
            changed = rollback(stored.record)
            _check_hardware(stored.record, (await self._stored.catalogue()).get(changed.profile_id))
            happening = Happening(
                "PROFILE_ROLLED_BACK",
                INFO,
                changed.model_id,
                f"Profile {changed.profile_id} is in force again instead of {changed.previous_profile_id}.",
                _facts(changed),
            )
            return await self._commit(stored, changed, happening, validate_only=request.validate_only)

        return await until_stored(attempt)

    async def drift(self, request: pb.ListDriftRequest) -> pb.ListDriftResponse:
        """See CalibrationService."""
        if request.model_id:
            check.model_id(request.model_id)
        found = [stored.record for stored in await self._drift.list()]
        wanted = [status for status in found if request.model_id in ("", status.model_id)]
        return pb.ListDriftResponse(drift=sorted(wanted, key=lambda status: status.model_id))

    async def accept(self, request: pb.AcceptProposalRequest) -> admin_pb2.Model:
        """See CalibrationService: profile, model and event are one commit."""
        model_id = check.model_id(request.model_id)

        async def attempt() -> admin_pb2.Model | None:
            stored = await self._tables.models.require(keys.model(model_id))
            drift = await self._drift.find(keys.drift(model_id))
            if drift is None or not drift.record.HasField("proposal"):
                raise FailedPreconditionError(f"there is no proposal for {model_id!r}: its profile does not drift")
            if drift.record.profile_id != profile_in_force(stored.record):
                raise FailedPreconditionError(
                    f"the proposal is about {drift.record.profile_id!r}, which is not in force any more"
                )
            wire = drift.record.proposal
            wire.create_time.FromSeconds(self._clock.wall_ns() // NS_PER_S)
            proposal = profile_from_proto(wire)
            new = await self._stored.numbered(proposal)
            changed = activation(stored.record, new.profile_id)
            happening = activated(changed, f" because {drift.record.profile_id} drifted")
            return await self._commit(
                stored, changed, happening, profile_entry(new), validate_only=request.validate_only
            )

        return await until_stored(attempt)

    async def _commit(
        self,
        stored: Stored[admin_pb2.Model],
        changed: admin_pb2.Model,
        happening: Happening,
        profile: Mapping[str, bytes] = MappingProxyType({}),
        *,
        validate_only: bool,
    ) -> admin_pb2.Model | None:
        """Stores a model with the event that says so, and a new profile with it; None when somebody was faster."""
        if validate_only:
            return changed
        expects = [stored.unchanged(), *(Expect.absent(key) for key in profile)]
        puts = {stored.entry.key: stored_bytes(changed), **self._events.entry(happening), **profile}
        revision = await self._tables.store.commit(expects, puts)
        if revision is None:
            return None
        changed.etag = str(revision)
        return changed


def _check_hardware(model: admin_pb2.Model, profile: CostProfile) -> None:
    if profile.hardware != model.engine.hardware:
        raise FailedPreconditionError(
            f"profile {profile.profile_id!r} was measured on {profile.hardware!r}; model {model.model_id!r} runs on "
            f"{model.engine.hardware!r}: calibrate it there"
        )


def _check_key(profile: CostProfile) -> None:
    """What may be part of a key and of an id, as for models and hardware labels."""
    check.model_id(profile.model, "profile.model")
    if not check.HARDWARE.fullmatch(profile.hardware):
        raise InvalidArgumentError(
            f"profile.hardware {profile.hardware[:80]!r} must be a label such as h100 or cpu-2core",
            field="profile.hardware",
        )
