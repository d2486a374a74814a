"""The forms of a policy file: TOML, JSON or YAML as text and as objects, numbers exact both ways."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Hashable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.amounts import decimal
from fairlead.reservation_limits import TIER_DEFAULT, WEIGHT_DEFAULT

FORMS = ("toml", "json", "yaml")

_TOML_HEAD = re.compile(r"^[ \t]*\[\[[ \t]*quota[ \t]*\]\]", re.MULTILINE)
_YAML_INT, _YAML_FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_YAML_HEAD = re.compile(r"^[ \t]*- ", re.MULTILINE)


class BrokenFileError(Exception):
    """A text that is not of its form.

    Args:
        reason: What the parser says.
        line: Where, from 1; 0 where that is not known.
    """

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def form_of(name: str, text: str) -> str:
    """The form of a file: by the end of its name; standard input is JSON where it begins with a brace, else TOML."""
    suffix = Path(name).suffix.lower().lstrip(".")
    if suffix in ("yaml", "yml"):
        return "yaml"
    return "json" if suffix == "json" or (not suffix and text.lstrip().startswith("{")) else "toml"


def parse(text: str, form: str) -> Any:
    """Turns a text into objects; keys that stand twice are refused, fractions stay exact.

    What YAML 1.1 takes for a number that reads differently (010 is 8, 1:30 is 90), and a number beyond Decimal's
    exponents, stays the text that it is.

    Args:
        text: The file.
        form: One of FORMS.

    Raises:
        BrokenFileError: It is not of that form, or cut off.
    """
    try:
        return _PARSERS[form](text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else getattr(error, "lineno", 0)
        reason = getattr(error, "problem", None) or str(error) or "nested too deeply"
        raise BrokenFileError(str(reason), line) from None


def entry_lines(text: str, form: str, entries: int) -> Sequence[int]:
    """The line of each entry, from 1; none where the text does not tell.

    Args:
        text: The file.
        form: One of FORMS.
        entries: How many the parser found.
    """
    head = {"toml": _TOML_HEAD, "yaml": _YAML_HEAD}.get(form)
    if head is None:
        return ()
    starts = [match.start() for match in head.finditer(text)]
    if len(starts) != entries:
        return ()
    lines, line, seen = [], 1, 0
    for start in starts:
        line += text.count("\n", seen, start)
        seen = start
        lines.append(line)
    return lines


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"a key stands twice in one object, among {', '.join(sorted(made))}")
    return made


def _fraction(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


class _StrictLoader(yaml.SafeLoader):
    """YAML in which no key may stand twice, and only plain decimal numbers are numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # the base class declares it without ClassVar
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_YAML_INT, _YAML_FLOAT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """See yaml.SafeLoader."""
        made = super().construct_mapping(node, deep=deep)
        if len(made) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return made


def _yaml_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _yaml_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal | str:
    return _fraction(loader.construct_scalar(node))


_StrictLoader.add_implicit_resolver(_YAML_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)\Z"), list("-+0123456789"))
_StrictLoader.add_implicit_resolver(
    _YAML_FLOAT, re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?\Z"), list("-+0123456789")
)
_StrictLoader.add_constructor(_YAML_INT, _yaml_int)
_StrictLoader.add_constructor(_YAML_FLOAT, _yaml_float)


def _toml(text: str) -> Any:
    return tomllib.loads(text, parse_float=_fraction)


def _json(text: str) -> Any:
    return json.loads(text, parse_float=_fraction, object_pairs_hook=_once)


def _yaml(text: str) -> Any:
    return yaml.load(text, _StrictLoader)  # a safe loader


_PARSERS = {"toml": _toml, "json": _json, "yaml": _yaml}


def policy_text(reservations: Sequence[admin_pb2.Reservation], form: str) -> str:
    """Writes quotas as a file that reads back to the same.

    Args:
        reservations: As the platform has them.
        form: One of FORMS.
    """
    rows = [_row(reservation) for reservation in reservations]
    if form == "json":
        return json.dumps({"quotas": len(rows), "quota": [_plain(row) for row in rows]}, indent=2) + "\n"
    if form == "yaml":
        return yaml.safe_dump({"quotas": len(rows), "quota": [_plain(row) for row in rows]}, sort_keys=False)
    head = "# Quotas in model units per minute (MU/min). Take them back: fairlead quota apply FILE\n"
    return f"{head}quotas = {len(rows)}\n" + "".join(
        "\n[[quota]]\n"
        + "".join(f"{key} = {json.dumps(value) if isinstance(value, str) else value}\n" for key, value in row.items())
        for row in rows
    )


def _row(reservation: admin_pb2.Reservation) -> dict[str, Any]:
    reserved = reservation.reserved_milli_mu_per_minute
    return {
        "tenant": reservation.tenant_id,
        "model": reservation.model_id,
        "etag": reservation.etag,  # not last: where a file is cut off, a field that must be there is missing
        "reserved": Decimal(decimal(reserved)),
        "burst": Decimal(decimal(max(reserved, reservation.burst_ceiling_milli_mu_per_minute))),
        "tier": reservation.tier or TIER_DEFAULT,
        "weight": reservation.weight or WEIGHT_DEFAULT,
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Rates as the shortest binary number that prints alike: exact up to the greatest rate, at 15 digits."""
    return {
        key: (int(value) if value == int(value) else float(value)) if isinstance(value, Decimal) else value
        for key, value in row.items()
    }
