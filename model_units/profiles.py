"""The cost profiles the platform ships with, and how one is found.

A profile is a JSON file in `model_units/profiles`, named after its id. Of several versions of one (model, hardware) the
newest is the default; older ones stay for rollback.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fairlead.errors import InvalidArgumentError, NotFoundError
from model_units.cost import CostProfile

_BUILT_IN_DIRECTORY: Final = Path(__file__).parent / "profiles"

# The model a hardware label stands for where a Model names no profile and several models were measured on it.
_DEFAULT_MODEL_BY_HARDWARE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "h100": "llama-3.1-8b",
        "a100": "llama-3.1-8b",
        "h100-tp4": "llama-3.1-70b",
        "cpu-2core": "tiny-llama",
    }
)


def parse_profile(text: str | bytes) -> CostProfile:
    """Reads one profile from JSON.

    Args:
        text: A JSON object with exactly the fields of `CostProfile`.

    Raises:
        InvalidArgumentError: Not JSON, a field is missing, unknown or of a wrong type, or a value is out of range.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"a cost profile must be JSON: {error}", field="profile") from error
    if not isinstance(raw, dict):
        raise InvalidArgumentError("a cost profile must be a JSON object", field="profile")
    values: dict[str, object] = {}
    known = {field.name: field.type for field in fields(CostProfile)}
    for name in raw.keys() - known.keys():
        raise InvalidArgumentError(f"a cost profile has no field {name!r}", field=f"profile.{name}")
    for name, kind in known.items():
        if name not in raw:
            raise InvalidArgumentError(f"a cost profile needs the field {name!r}", field=f"profile.{name}")
        values[name] = _checked(name, str(kind), raw[name])
    try:
        return CostProfile(**values)  # type: ignore[arg-type]  # each value was checked against its field's type
    except ValueError as error:
        raise InvalidArgumentError(str(error), field="profile") from error


def _checked(name: str, kind: str, value: object) -> object:
    """`value` if it is of the JSON type that stands for `kind`, numbers as float where a float is wanted."""
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise InvalidArgumentError(f"profile field {name!r} must be of type {kind}", field=f"profile.{name}")


class ProfileCatalogue:
    """A fixed set of profiles, found by id or by hardware.

    Args:
        profiles: The profiles; ids must differ.

    Raises:
        InvalidArgumentError: Two profiles have one id.
    """

    def __init__(self, profiles: Iterable[CostProfile]) -> None:
        self._by_id: dict[str, CostProfile] = {}
        for profile in profiles:
            if profile.profile_id in self._by_id:
                raise InvalidArgumentError(f"two cost profiles have the id {profile.profile_id!r}", field="profile_id")
            self._by_id[profile.profile_id] = profile

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, sorted."""
        return tuple(sorted(self._by_id))

    def get(self, profile_id: str) -> CostProfile:
        """The profile of this id.

        Raises:
            NotFoundError: There is none; the message lists those there are.
        """
        profile = self._by_id.get(profile_id)
        if profile is None:
            raise NotFoundError(f"there is no cost profile {profile_id!r}; known: {', '.join(self.ids)}")
        return profile

    def default_for(self, hardware: str) -> CostProfile:
        """The newest profile of the model that `hardware` stands for.

        Raises:
            NotFoundError: Nothing was measured on this hardware; the message lists the labels there are.
        """
        candidates = [profile for profile in self._by_id.values() if profile.hardware == hardware]
        if not candidates:
            labels = ", ".join(sorted({profile.hardware for profile in self._by_id.values()}))
            raise NotFoundError(f"there is no cost profile for hardware {hardware!r}; known: {labels}")
        preferred = _DEFAULT_MODEL_BY_HARDWARE.get(hardware)
        return max(candidates, key=lambda profile: (profile.model == preferred, profile.version, profile.profile_id))

    def resolve(self, profile_id: str, hardware: str) -> CostProfile:
        """The profile a model uses: the one it names, else its hardware's default.

        Args:
            profile_id: A profile's id, or empty.
            hardware: Hardware label; read only when `profile_id` is empty.

        Raises:
            NotFoundError: There is no such profile.
        """
        return self.get(profile_id) if profile_id else self.default_for(hardware)


@functools.cache
def built_in_profiles() -> ProfileCatalogue:
    """The profiles that ship with the platform. Read from disk once per process."""
    return ProfileCatalogue(parse_profile(path.read_bytes()) for path in sorted(_BUILT_IN_DIRECTORY.glob("*.json")))
