"""Reads dataclasses out of TOML: unknown names are refused with a suggestion, types and ranges by name."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from fairlead.errors import InvalidArgumentError

S = TypeVar("S")

# The largest whole number of TOML; Python's reader takes larger ones, which are no number of anything here.
_WHOLE_MAX = 2**63 - 1


def number(default: float | int, *, minimum: float = 0.0, maximum: float = math.inf) -> Any:
    """Declares a number with its range; the default's type is the field's."""
    return dataclasses.field(default=default, metadata={"minimum": minimum, "maximum": maximum})


def choice(default: str, *choices: str) -> Any:
    """Declares a text that must be one of a few."""
    return dataclasses.field(default=default, metadata={"choices": choices})


def read_fields(kind: type[S], raw: Mapping[str, object], where: str) -> S:
    """Makes a dataclass out of a TOML table.

    Args:
        kind: A dataclass whose fields are text, numbers or booleans.
        raw: The table.
        where: What the table is called in messages: "tenant 'acme'".

    Raises:
        InvalidArgumentError: A name is unknown or missing, or a value is of a wrong type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    types = get_type_hints(kind)
    for name in raw:
        if name not in fields:
            raise InvalidArgumentError(f"{where}: unknown key {name!r}{suggestion(name, list(fields))}", field=name)
    for name, field in fields.items():
        if name not in raw and field.default is dataclasses.MISSING:
            raise InvalidArgumentError(f"{where}: {name} is missing", field=name)
    return kind(**{name: _checked(fields[name], types[name], value, where) for name, value in raw.items()})


def changed(instance: S, changes: Mapping[str, object], where: str) -> S:
    """A copy with some fields changed, checked like everything that was read; arguments and errors as there."""
    return read_fields(type(instance), {**dataclasses.asdict(instance), **changes}, where)  # type: ignore[call-overload]


def suggestion(name: str, known: list[str]) -> str:
    """`, did you mean 'x'?` or the list of what is known."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def _checked(field: dataclasses.Field[Any], kind: type, value: object, where: str) -> object:
    name, metadata = field.name, field.metadata
    if isinstance(value, int) and abs(value) > _WHOLE_MAX:
        raise InvalidArgumentError(f"{where}: {name} has more digits than 64 bits hold", field=name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise InvalidArgumentError(f"{where}: {name} must be {wanted}, not {value!r}", field=name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = metadata.get("minimum", -math.inf), metadata.get("maximum", math.inf)
        if not (math.isfinite(value) and low <= value <= high):
            limits = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise InvalidArgumentError(f"{where}: {name} must be {limits}, not {value:g}", field=name)
    choices = metadata.get("choices", ())
    if choices and value not in choices:
        hint = suggestion(str(value), list(choices))
        raise InvalidArgumentError(f"{where}: {name} is {value!r}, which is no choice{hint}", field=name)
    return value
