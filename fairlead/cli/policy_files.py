"""Policy files: quotas as TOML, JSON or YAML, read strictly and written so that they can be read back.

quotas = 1            # optional: how many there are; then every field is spelled out, and a cut-off file is noticed

[[quota]]
tenant = "acme"
model = "llama-3.1-8b"
reserved = 300        # MU per minute, guaranteed
burst = 600           # ceiling including what is lent; reserved where left out
tier = 5              # 1 (served first in a shortfall) to 9; 5 where left out
weight = 1            # among equals, 1 to 1000; 1 where left out
etag = "1234"         # as exported: refused if somebody changed the quota since; left out, whatever is there goes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.amounts import decimal, milli, shown
from fairlead.cli.policy_forms import BrokenFileError, entry_lines, parse
from fairlead.reservation_limits import TIER_DEFAULT, TIER_MAX, WEIGHT_DEFAULT, WEIGHT_MAX

_REQUIRED = ("tenant", "model", "reserved")
_SPELLED_OUT = (*_REQUIRED, "burst", "tier", "weight")
_KNOWN = (*_SPELLED_OUT, "etag")
_RANGES = {"tier": (1, TIER_MAX), "weight": (1, WEIGHT_MAX)}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a file.

    Attributes:
        text: What, and what is allowed.
        entry: The entry, from 1; 0 for the file as a whole.
        name: The entry's tenant and model as far as they are known.
        field: The field to blame, or empty.
        line: Where, from 1; 0 where that is not known.
    """

    text: str
    entry: int = 0
    name: str = ""
    field: str = ""
    line: int = 0

    def said(self, file: str) -> str:
        """One line for a person."""
        place = f"{file}:{self.line}" if self.line else file
        entry = f"quota {self.entry}{f' ({self.name})' if self.name else ''}: " if self.entry else ""
        return f"{place}: {entry}{f'{self.field}: ' if self.field else ''}{self.text}"


@dataclass(slots=True)
class PolicyFile:
    """What a file says, and what is wrong with it."""

    reservations: list[admin_pb2.Reservation] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """The entry of each reservation, from 1."""
    lines: Sequence[int] = ()
    """The line of each entry, as far as they are known."""
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, text: str, entry: int = 0, name: str = "", field: str = "") -> None:
        """Notes a problem."""
        line = self.lines[entry - 1] if 0 < entry <= len(self.lines) else 0
        self.problems.append(Problem(text, entry, name, field, line))

    def check_names(self, tenants: Iterable[str], models: Iterable[str]) -> None:
        """Notes every quota of a tenant or model that does not exist.

        Args:
            tenants: Those that exist.
            models: Likewise.
        """
        known_tenants, known_models = set(tenants), set(models)
        for entry, wanted in zip(self.places, self.reservations, strict=True):
            name = f"{wanted.tenant_id} on {wanted.model_id}"
            if wanted.tenant_id not in known_tenants:
                self.refuse("there is no such tenant; `fairlead tenants create` makes one", entry, name, "tenant")
            if wanted.model_id not in known_models:
                self.refuse(
                    "there is no such model; `fairlead models list` shows those there are", entry, name, "model"
                )


def read_policies(text: str, form: str) -> PolicyFile:
    """Reads a file strictly.

    Args:
        text: The file.
        form: One of FORMS.

    Returns:
        Its quotas, and everything that is wrong with it; unknown names are only found by `check_names`.
    """
    found = PolicyFile()
    if form != "json" and text and not text.endswith("\n"):  # JSON has brackets that close
        found.refuse("the last line has no end: a file cut off here; where it is complete, end it with a newline")
    try:
        document = parse(text, form)
    except BrokenFileError as error:
        found.problems.append(Problem(f"not {form.upper()}, or cut off: {error.reason}", line=error.line))
        return found
    if isinstance(document, dict) and document.get("quotas") == 0:
        document.setdefault("quota", [])
    if not isinstance(document, dict) or not isinstance(document.get("quota"), list):
        hint = "[[quota]]" if form == "toml" else '"quota", a list'
        found.refuse(f"holds no quotas: expected {hint} with {', '.join(_SPELLED_OUT)}")
        return found
    entries = document["quota"]
    found.lines = entry_lines(text, form, len(entries))
    for key in document:
        if key not in ("quota", "quotas"):
            found.refuse(f"unknown key {key!r}; there are: quotas, quota")
    counted = "quotas" in document
    if counted and (isinstance(document["quotas"], bool) or document["quotas"] != len(entries)):
        found.refuse(
            f"quotas says {shown(document['quotas'])} and {len(entries)} are there: a file cut off, or a wrong count"
        )
    first: dict[tuple[str, str], int] = {}
    for number, entry in enumerate(entries, 1):
        wanted = _entry(found, number, entry, counted=counted)
        if wanted is None:
            continue
        key = (wanted.model_id, wanted.tenant_id)
        if key in first:
            found.refuse(f"quota {first[key]} is the same tenant and model", number, _name(entry))
            continue
        first[key] = number
        found.reservations.append(wanted)
        found.places.append(number)
    return found


def _entry(found: PolicyFile, number: int, entry: Any, *, counted: bool) -> admin_pb2.Reservation | None:
    """One entry; None and its problems noted where something is wrong."""
    if not isinstance(entry, Mapping):
        found.refuse(f"must have {', '.join(_SPELLED_OUT)}", number)
        return None
    before, name = len(found.problems), _name(entry)
    for key in entry:
        if key not in _KNOWN:
            found.refuse(f"unknown key; there are: {', '.join(_KNOWN)}", number, name, str(key)[:80])
    for key in _SPELLED_OUT if counted else _REQUIRED:
        if key not in entry:
            why = " (`quotas` is set: every field is spelled out)" if key not in _REQUIRED else ""
            found.refuse(f"is missing{why}", number, name, key)
    texts = {key: entry.get(key, "") for key in ("tenant", "model", "etag")}
    for key, value in texts.items():
        if not isinstance(value, str) or (key in entry and not value):
            found.refuse(
                f"{shown(value if isinstance(value, str) else shown(value))} must be a text", number, name, key
            )
    rates = {key: _rate(found, number, name, key, entry) for key in ("reserved", "burst")}
    whole = {key: _whole(found, number, name, key, entry) for key in _RANGES}
    reserved, burst = rates["reserved"] or 0, rates["burst"]
    if len(found.problems) == before and max(reserved, burst or 0) == 0:
        found.refuse(
            "must be above 0, or burst must be for best effort; delete the quota to end it", number, name, "reserved"
        )
    if burst is not None and burst < reserved:
        found.refuse(f"{decimal(burst)} must be at least the {decimal(reserved)} reserved", number, name, "burst")
    if len(found.problems) > before:
        return None
    return admin_pb2.Reservation(
        tenant_id=texts["tenant"],
        model_id=texts["model"],
        reserved_milli_mu_per_minute=reserved,
        burst_ceiling_milli_mu_per_minute=reserved if burst is None else burst,
        tier=whole["tier"] or TIER_DEFAULT,
        weight=whole["weight"] or WEIGHT_DEFAULT,
        etag=texts["etag"],
    )


def _name(entry: Mapping[str, Any]) -> str:
    named = [entry.get(key, "?") for key in ("tenant", "model")]
    tenant_id, model_id = (value if isinstance(value, str) else shown(value) for value in named)
    return f"{tenant_id[:63]} on {model_id[:127]}"


def _rate(found: PolicyFile, number: int, name: str, key: str, entry: Mapping[str, Any]) -> int | None:
    if key not in entry:
        return None
    value = entry[key]
    try:
        if isinstance(value, str):
            raise ValueError(f"{shown(value)} must be a number, not a text: plainly in decimal, as 300 or 2.5")
        return milli(value)
    except ValueError as error:
        found.refuse(str(error), number, name, key)
        return None


def _whole(found: PolicyFile, number: int, name: str, key: str, entry: Mapping[str, Any]) -> int | None:
    if key not in entry:
        return None
    value, (least, most) = entry[key], _RANGES[key]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        found.refuse(f"{shown(value)} must be a whole number from {least} to {most:,}", number, name, key)
        return None
    return value
