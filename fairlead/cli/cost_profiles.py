"""Cost profiles as the CLI shows, compares, writes and reads them."""

from __future__ import annotations

import json
import math
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from fairlead.admin.v1 import calibration_pb2
from fairlead.cli.output import message_row
from fairlead.errors import InvalidArgumentError
from fairlead.typical_requests import TYPICAL_REQUESTS

MEANINGS = {
    "a": "replica-seconds per input token",
    "b": "replica-seconds per output token",
    "d": "replica-seconds per input token squared",
    "g": "replica-seconds per output token and token of context",
}
"""What each coefficient prices, in the order in which they are shown."""

_MU_PER_REPLICA_SECOND = 100 / 60  # by definition of the unit: a replica serves 100 MU per minute
_FORMS = {calibration_pb2.COST_FORM_ATTENTION: "attention", calibration_pb2.COST_FORM_PRODUCT: "product"}
_TEXTS = ("model", "hardware", "engine", "provenance")
_NUMBERS = ("tpot_objective_ms", "ttft_objective_ms", "a", "b", "d", "g", "image_s", "image_cpu_s")
_REQUIRED = {*_TEXTS, "tpot_objective_ms", "a", "b", "d", "g"}
_EVIDENCE_NUMBERS = ("hold_out_error", "engine_s", "latency_spread")


def price_mu(profile: calibration_pb2.CostProfile, input_tokens: int, output_tokens: int) -> float:
    """What a request costs by a profile, MU, with nothing of its prompt cached.

    Args:
        profile: The constants.
        input_tokens: Tokens of the prompt.
        output_tokens: Tokens of the answer.
    """
    product = profile.form == calibration_pb2.COST_FORM_PRODUCT
    context = input_tokens if product else input_tokens + output_tokens / 2
    prefill_s = profile.a * input_tokens + profile.d * input_tokens**2
    decode_s = profile.b * output_tokens + profile.g * output_tokens * context
    return (prefill_s + decode_s) * _MU_PER_REPLICA_SECOND


def percent(value: Any, digits: int = 1) -> str:
    """Shows a part of one as percent; None as a dash."""
    return "-" if value is None else f"{value:.{digits}%}"


def signed_percent(value: Any) -> str:
    """Shows a change as percent with its sign; None as a dash."""
    return "-" if value is None else f"{value:+.1%}"


def amount(value: Any) -> str:
    """Shows a coefficient or a price to four significant digits."""
    return "-" if value is None else f"{value:.4g}"


def coefficient_rows(profile: calibration_pb2.CostProfile) -> list[dict[str, Any]]:
    """One row for each coefficient: its value, its 95 % interval, and half of that as a part of the value.

    Args:
        profile: The constants, with or without evidence.
    """
    rows = []
    for name, meaning in MEANINGS.items():
        value = getattr(profile, name)
        known = name in profile.evidence.intervals
        low = profile.evidence.intervals[name].low if known else None
        high = profile.evidence.intervals[name].high if known else None
        wide = (high - low) / 2 / value if low is not None and high is not None and value > 0 else math.inf
        rows.append(
            {
                "name": name,
                "value": value,
                "low": low,
                "high": high,
                "uncertainty": wide if math.isfinite(wide) else None,
                "meaning": meaning,
            }
        )
    return rows


def compare(before: calibration_pb2.CostProfile, after: calibration_pb2.CostProfile) -> dict[str, list[dict[str, Any]]]:
    """What changes from one profile to another.

    Args:
        before: The one that prices are compared with.
        after: The other.

    Returns:
        `coefficients` and `requests`: rows of name, before, after, change (a part of one; None where before is 0).
    """
    names = (*MEANINGS, "image_s", "tpot_objective_ms", "ttft_objective_ms")
    coefficients = [_change(name, getattr(before, name), getattr(after, name)) for name in names]
    requests = [
        {
            **_change(name, price_mu(before, read, made), price_mu(after, read, made)),
            "input_tokens": read,
            "output_tokens": made,
        }
        for name, read, made in TYPICAL_REQUESTS
    ]
    return {"coefficients": coefficients, "requests": requests}


def _change(name: str, before: float, after: float) -> dict[str, Any]:
    change = after / before - 1 if before > 0 else None if after > 0 else 0.0
    return {"name": name, "before": before, "after": after, "change": change}


def to_file(profile: calibration_pb2.CostProfile) -> str:
    """Writes a profile the way those that ship are written; what is at its default is left out.

    Args:
        profile: The profile.

    Returns:
        Indented JSON that `from_file` reads.
    """
    held = message_row(profile)
    evidence = held.pop("evidence")
    held["form"] = _FORMS.get(profile.form, "attention")
    plain = {name: value for name, value in held.items() if value or name in _REQUIRED}
    if plain["form"] == "attention":
        del plain["form"]
    if profile.HasField("evidence"):
        evidence["intervals"] = {name: [entry["low"], entry["high"]] for name, entry in evidence["intervals"].items()}
        curve = evidence["latency_curve"]
        evidence["latency_curve"] = [[point["intensity_ms"], point["tpot_ms"]] for point in curve]
        plain["evidence"] = {name: value for name, value in evidence.items() if value}
    return json.dumps(plain, indent=2, ensure_ascii=False)


def from_file(text: str, name: str) -> calibration_pb2.CostProfile:
    """Reads a profile that `to_file` has written, or one of those that ship.

    Args:
        text: What the file holds.
        name: Of the file, for errors.

    Raises:
        InvalidArgumentError: It is no such file; the message names the field. Ranges are the platform's to check.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{name} is not JSON: {error}") from None
    reader = _Reader(raw, name)
    missing = sorted(_REQUIRED - reader.fields.keys())
    if missing:
        raise InvalidArgumentError(
            f"{name} lacks {', '.join(missing)}: `fairlead profiles export` writes what a cost profile must hold"
        )
    try:
        return _read_profile(reader, name)
    except (ValueError, TypeError) as error:  # a number or a text that protobuf cannot carry
        raise InvalidArgumentError(f"{name}: {error}") from None


def _read_profile(reader: _Reader, name: str) -> calibration_pb2.CostProfile:
    profile = calibration_pb2.CostProfile()
    for field in _TEXTS:
        setattr(profile, field, reader.take(field, str))
    for field in _NUMBERS:
        setattr(profile, field, reader.number(field))
    form = reader.take("form", str) or "attention"
    known = {word: number for number, word in _FORMS.items()}
    if form not in known:
        raise InvalidArgumentError(f"{name}: form must be {' or '.join(sorted(known))}, not {form[:40]!r}")
    profile.form = known[form]
    _read_time(reader.take("create_time", str), name, profile.create_time)
    # The platform sets them.
    reader.skip("profile_id", "version")
    evidence = reader.take("evidence", dict)
    reader.end()
    if evidence:
        _read_evidence(_Reader(evidence, f"{name}: evidence"), profile.evidence)
    return profile


def _read_time(text: str, name: str, into: Timestamp) -> None:
    try:
        if text:
            into.FromJsonString(text)
    except ValueError:
        raise InvalidArgumentError(
            f"{name}: create_time must be like 2026-01-31T12:00:00Z, not {text[:40]!r}"
        ) from None


def _read_evidence(reader: _Reader, into: calibration_pb2.ProfileEvidence) -> None:
    for field in _EVIDENCE_NUMBERS:
        setattr(into, field, reader.number(field))
    into.points = reader.take("points", int)
    for coefficient, interval in reader.take("intervals", dict).items():
        low, high = reader.pair(interval, f"intervals.{coefficient}")
        into.intervals[coefficient].low, into.intervals[coefficient].high = low, high
    for traffic, error in reader.take("class_errors", dict).items():
        into.class_errors[traffic] = reader.checked(error, f"class_errors.{traffic}")
    for number, point in enumerate(reader.take("latency_curve", list)):
        intensity, tpot = reader.pair(point, f"latency_curve[{number}]")
        into.latency_curve.add(intensity_ms=intensity, tpot_ms=tpot)
    reader.end()


class _Reader:
    """Takes the fields of a JSON object one by one and complains of those that are left."""

    def __init__(self, raw: Any, name: str) -> None:
        if not isinstance(raw, dict):
            raise InvalidArgumentError(f"{name} must be a JSON object, as `fairlead profiles export` writes it")
        self.fields: dict[str, Any] = dict(raw)
        self._name = name

    def take(self, field: str, kind: type) -> Any:
        """The field's value, or the kind's empty one."""
        value = self.fields.pop(field, None)
        if value is None:
            return kind()
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidArgumentError(f"{self._name}: {field} must be of type {kind.__name__}")
        return value

    def number(self, field: str) -> float:
        """The field's number, or 0."""
        return self.checked(self.fields.pop(field, 0.0), field)

    def checked(self, value: Any, field: str) -> float:
        """The value, if it is a finite number."""
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
            return float(value)
        raise InvalidArgumentError(f"{self._name}: {field} must be a number")

    def pair(self, value: Any, field: str) -> tuple[float, float]:
        """The value, if it is a list of two numbers."""
        if not isinstance(value, list) or len(value) != 2:
            raise InvalidArgumentError(f"{self._name}: {field} must be a list of two numbers")
        return self.checked(value[0], field), self.checked(value[1], field)

    def skip(self, *fields: str) -> None:
        """Ignores fields."""
        for field in fields:
            self.fields.pop(field, None)

    def end(self) -> None:
        """Complains of fields that nobody took."""
        if self.fields:
            raise InvalidArgumentError(f"{self._name}: unknown field {min(self.fields)[:40]!r}")
