"""The cost profiles the platform ships with, how one is found, and the JSON they are written in.

A profile that ships is a JSON file in `model_units/profiles`, named after its id. Of several versions of one
(model, hardware) the newest is the default; older ones stay for rollback.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from fairlead.errors import InvalidArgumentError, NotFoundError
from model_units.cost import CostForm, CostProfile, Evidence
from model_units.slips import check_units

_T = TypeVar("_T")

# The model a hardware label stands for where a Model names no profile and several models were measured on it.
_DEFAULT_MODEL_BY_HARDWARE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "h100": "llama-3.1-8b",
        "a100": "llama-3.1-8b",
        "h100-tp4": "llama-3.1-70b",
        "a100-tp4": "llama-3.1-70b",
        "h100-tp8": "llama-3.1-70b",
        "cpu-2core": "tiny-llama",
    }
)


def parse_profile(text: str | bytes) -> CostProfile:
    """Reads one profile from JSON.

    Args:
        text: A JSON object with the fields of `CostProfile`; those that have a default there may be left out.
            `evidence` is an object of the same kind, an interval a list [low, high], the latency curve a list of them.

    Raises:
        InvalidArgumentError: Not JSON, a field is missing, unknown or of a wrong type, a value is out of range or is
            most likely in another unit.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"a cost profile must be JSON: {error}", field="profile") from error
    profile = _read_object(CostProfile, "profile", raw)
    check_units(profile)
    return profile


def render_profile(profile: CostProfile) -> str:
    """Writes a profile as `parse_profile` reads it; what is at its default is left out.

    Args:
        profile: The profile.

    Returns:
        Indented JSON that ends with a line feed; reading it gives an equal profile.
    """
    return json.dumps(_plain(profile), indent=2, ensure_ascii=False) + "\n"


def _plain(value: CostProfile | Evidence) -> dict[str, object]:
    """The fields that are not at their defaults, as JSON knows them."""
    plain: dict[str, object] = {}
    for known in fields(value):
        held = getattr(value, known.name)
        if not held and _has_default(known):
            continue
        if isinstance(held, CostForm):
            if held is not known.default:
                plain[known.name] = held.value
        elif isinstance(held, Evidence):
            plain[known.name] = _plain(held)
        else:
            plain[known.name] = dict(held) if isinstance(held, Mapping) else held
    return plain


def _has_default(known: Field[Any]) -> bool:
    return known.default is not MISSING or known.default_factory is not MISSING


def _read_object(kind: Callable[..., _T], path: str, raw: object) -> _T:
    """A CostProfile or an Evidence of a JSON object; `path` names it in refusals."""
    if not isinstance(raw, dict):
        raise InvalidArgumentError(f"{path} must be a JSON object", field=path)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # both are dataclasses
    for name in sorted(raw.keys() - known.keys()):
        raise InvalidArgumentError(f"{path} has no field {name[:80]!r}", field=f"{path}.{name[:80]}")
    values: dict[str, object] = {}
    for name, field in known.items():
        if name in raw:
            values[name] = _READERS[name](f"{path}.{name}", raw[name])
        elif not _has_default(field):
            raise InvalidArgumentError(f"{path} needs the field {name!r}", field=f"{path}.{name}")
    try:
        return kind(**values)
    except ValueError as error:
        raise InvalidArgumentError(str(error), field=path) from error


def _text(path: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(path, "a text", value)
    return value


def _whole(path: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(path, "a whole number", value)
    return value


def _number(path: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong_type(path, "a number", value)
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidArgumentError(f"{path} is too large a number", field=path) from error


def _form(path: str, value: object) -> CostForm:
    try:
        return CostForm(value)
    except ValueError as error:
        forms = " or ".join(repr(form.value) for form in CostForm)
        raise InvalidArgumentError(f"{path} must be {forms}", field=path) from error


def _evidence(path: str, value: object) -> Evidence | None:
    return None if value is None else _read_object(Evidence, path, value)


def _pair(path: str, value: object) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong_type(path, "a list of two numbers", value)
    return (_number(path, value[0]), _number(path, value[1]))


def _mapping(read: Callable[[str, object], _T]) -> Callable[[str, object], Mapping[str, _T]]:
    def reader(path: str, value: object) -> Mapping[str, _T]:
        if not isinstance(value, dict):
            raise _wrong_type(path, "a JSON object", value)
        return {name: read(f"{path}.{name[:80]}", entry) for name, entry in value.items()}

    return reader


def _pairs(path: str, value: object) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, list):
        raise _wrong_type(path, "a list of pairs of numbers", value)
    return tuple(_pair(f"{path}[{index}]", entry) for index, entry in enumerate(value))


def _wrong_type(path: str, wanted: str, value: object) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path} must be {wanted}, not {type(value).__name__}", field=path)


# How a field of a profile or of its evidence is read, by its name.
_READERS: Final[Mapping[str, Callable[[str, object], object]]] = MappingProxyType(
    {
        "profile_id": _text,
        "model": _text,
        "hardware": _text,
        "engine": _text,
        "tpot_objective_ms": _number,
        "a": _number,
        "b": _number,
        "d": _number,
        "g": _number,
        "provenance": _text,
        "version": _whole,
        "form": _form,
        "ttft_objective_ms": _number,
        "image_s": _number,
        "image_cpu_s": _number,
        "create_time": _text,
        "evidence": _evidence,
        "intervals": _mapping(_pair),
        "hold_out_error": _number,
        "class_errors": _mapping(_number),
        "points": _whole,
        "engine_s": _number,
        "latency_curve": _pairs,
        "latency_spread": _number,
    }
)


class ProfileCatalogue:
    """The profiles there are, found by id or by hardware.

    Args:
        profiles: Those that ship; ids must differ.
        live: Those measured on this platform, by id. Its owner changes it in place and every look-up sees that. A
            profile that ships is never replaced by one of the same id, and no live one is a default: putting one into
            force is a decision, not a side effect of storing it.

    Raises:
        InvalidArgumentError: Two of `profiles` have one id.
    """

    def __init__(self, profiles: Iterable[CostProfile], live: Mapping[str, CostProfile] = MappingProxyType({})) -> None:
        self._live = live
        self._defaults: dict[str, CostProfile] = {}  # by hardware, of those that were asked for
        self._by_id: dict[str, CostProfile] = {}
        for profile in profiles:
            if profile.profile_id in self._by_id:
                raise InvalidArgumentError(f"two cost profiles have the id {profile.profile_id!r}", field="profile_id")
            self._by_id[profile.profile_id] = profile

    def with_live(self, live: Mapping[str, CostProfile]) -> ProfileCatalogue:
        """A catalogue of the same profiles that ship, beside these live ones."""
        return ProfileCatalogue(self._by_id.values(), live)

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, sorted."""
        return tuple(sorted({*self._by_id, *self._live}))

    def is_built_in(self, profile_id: str) -> bool:
        """Whether the profile of this id ships with the platform."""
        return profile_id in self._by_id

    def get(self, profile_id: str) -> CostProfile:
        """The profile of this id.

        Raises:
            NotFoundError: There is none; the message lists those there are.
        """
        profile = self._by_id.get(profile_id) or self._live.get(profile_id)
        if profile is None:
            raise NotFoundError(f"there is no cost profile {profile_id!r}; known: {', '.join(self.ids)}")
        return profile

    def versions_of(self, model: str, hardware: str) -> list[CostProfile]:
        """Every profile of one (model, hardware), oldest version first."""
        every = (self.get(profile_id) for profile_id in self.ids)
        chosen = [profile for profile in every if (profile.model, profile.hardware) == (model, hardware)]
        return sorted(chosen, key=lambda profile: profile.version)

    def next_version(self, model: str, hardware: str) -> int:
        """The version that a new profile of (model, hardware) gets, 1 or more."""
        return max((profile.version for profile in self.versions_of(model, hardware)), default=0) + 1

    def default_for(self, hardware: str) -> CostProfile:
        """The newest profile that ships for the model that `hardware` stands for.

        Raises:
            NotFoundError: Nothing was measured on this hardware; the message lists the labels there are.
        """
        known = self._defaults.get(hardware)
        if known is not None:
            return known
        candidates = [profile for profile in self._by_id.values() if profile.hardware == hardware]
        if not candidates:
            labels = ", ".join(sorted({profile.hardware for profile in self._by_id.values()}))
            raise NotFoundError(f"there is no cost profile for hardware {hardware!r}; known: {labels}")
        preferred = _DEFAULT_MODEL_BY_HARDWARE.get(hardware)
        best = max(candidates, key=lambda profile: (profile.model == preferred, profile.version, profile.profile_id))
        self._defaults[hardware] = best
        return best

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
    folder = Path(str(files("model_units"))) / "profiles"
    return ProfileCatalogue(parse_profile(path.read_bytes()) for path in sorted(folder.glob("*.json")))
