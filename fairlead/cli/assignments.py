"""Assignments drawn: slices with their heat, replicas with their utilisation, moves and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from fairlead.cli.output import Column, Row, bar, message_row, mu, plain, table_of
from fairlead.sharding.v1 import sharding_pb2

SLICES_SHOWN_MAX: Final = 30
"""A terminal's worth, the hottest ones; -o json has all."""

SHARED: Final = "(shared)"
"""Stands for the tenant of a slice that several share."""

_KEYS: Final = 1 << 64


def _tenant(value: Any) -> str:
    return escape(value) if value else f"[dim]{SHARED}[/]"


def _share(value: Any) -> str:
    return f"{value:.2%}" if value >= 0.0001 else "<0.01%"


def _heat(pair: Any) -> str:
    part, whole = pair
    return bar(part, whole, 10)


def _frozen(value: Any) -> str:
    return f"[cyan]until {value}[/]" if value else "-"


def _way(pair: Any) -> str:
    left, came = pair
    if left and came:
        return f"{left} → {came}"
    return f"[green]+ {came}[/]" if came else f"[red]- {left}[/]"


SLICES = (
    Column("tenant_id", "tenant", _tenant),
    Column("keys_share", "keys", _share, number=True),
    Column("load_milli_mu_per_minute", "load MU/min", mu),
    Column("heat", "of its replicas", _heat),
    Column("replica_ids", "replicas", wraps=True),
    Column("frozen_until", "frozen", _frozen),
)
REPLICAS = (
    Column("replica_id", "replica"),
    Column("seat", "seat"),
    Column("slices", "slices", number=True),
    Column("load_milli_mu_per_minute", "load MU/min", mu),
    Column("capacity_milli_mu_per_minute", "capacity", mu),
    Column("heat", "utilisation", _heat),
)
MOVES = (
    Column("model_id", "model"),
    Column("tenant_id", "tenant", _tenant),
    Column("way", "replica", _way),
    Column("cause", "why"),
    Column("load_milli_mu_per_minute", "load MU/min", mu),
    Column("warm_tokens", "warm tokens lost", plain, number=True),
)


def assignment_rows(answer: sharding_pb2.ListAssignmentsResponse, tenant_id: str, now_s: float) -> list[dict[str, Any]]:
    """Puts what the control plane knows of assignments together, one row per model.

    Args:
        answer: From ShardingService.
        tenant_id: Only slices and moves with keys of this tenant; empty for all.
        now_s: Wall time, seconds since the Unix epoch.

    Returns:
        JSON-ready rows: generation, age_s, reason, and lists of slices, replicas and moves. Keys are hexadecimal text,
        because JSON's readers round integers of 64 bits.
    """
    return [_model(assignment, answer, tenant_id, now_s) for assignment in answer.assignments]


def _model(
    assignment: sharding_pb2.Assignment,
    answer: sharding_pb2.ListAssignmentsResponse,
    tenant_id: str,
    now_s: float,
) -> dict[str, Any]:
    model_id = assignment.model_id
    row = message_row(assignment)
    heats = {heat.replica_id: heat for heat in answer.replicas if heat.model_id == model_id}
    loads = {heat.first_key: heat.load_milli_mu_per_minute for heat in answer.slices if heat.model_id == model_id}
    low, high = (answer.tenant_keys.first_key, answer.tenant_keys.last_key) if tenant_id else (0, _KEYS - 1)
    firsts = [each.first_key for each in assignment.slices]
    kept = [
        (each, end)
        for each, (first, end) in zip(assignment.slices, pairwise([*firsts, _KEYS]), strict=True)
        if first <= high and low < end
    ]
    kept_firsts = {each.first_key for each, _ in kept}
    return {
        "model_id": model_id,
        "generation": row["generation"],
        "compute_time": row["compute_time"],
        "age_s": round(max(0.0, now_s - assignment.compute_time.ToNanoseconds() / 1e9), 1),
        "reason": assignment.reason,
        "moved_milli_mu_per_minute": assignment.moved_milli_mu_per_minute,
        "slices": [_slice(each, end, assignment, heats, loads) for each, end in kept],
        "replicas": _replicas(assignment, heats),
        "moves": [
            message_row(move) | {"model_id": model_id, "first_key": f"{move.first_key:#018x}"}
            for move in assignment.moves
            if not tenant_id or tenant_id == move.tenant_id or (not move.tenant_id and move.first_key in kept_firsts)
        ],
    }


def _slice(
    each: sharding_pb2.Slice,
    end: int,
    assignment: sharding_pb2.Assignment,
    heats: Mapping[str, sharding_pb2.ReplicaHeat],
    loads: Mapping[int, int],
) -> dict[str, Any]:
    row = message_row(each)
    # Damage is told by `fairlead doctor` and the logs; what can be shown is shown.
    ids = [assignment.replica_ids[place] for place in each.replicas if place < len(assignment.replica_ids)]
    load = loads.get(each.first_key, each.load_milli_mu_per_minute)
    capacity = sum(heats[replica_id].capacity_milli_mu_per_minute for replica_id in ids if replica_id in heats)
    return {
        "tenant_id": each.tenant_id,
        "first_key": f"{each.first_key:#018x}",
        "keys_share": (end - each.first_key) / _KEYS,
        "load_milli_mu_per_minute": load,
        "capacity_milli_mu_per_minute": capacity,
        "utilization": round(load / capacity, 4) if capacity else None,
        "replica_ids": ids,
        "frozen_until": row["frozen_until"],
        "shrinkable_since": row["shrinkable_since"],
    }


def _replicas(
    assignment: sharding_pb2.Assignment, heats: Mapping[str, sharding_pb2.ReplicaHeat]
) -> list[dict[str, Any]]:
    seats = dict(zip(assignment.replica_ids, assignment.seats, strict=False))
    rows = []
    for replica_id in sorted({*assignment.replica_ids, *heats}):
        heat = heats.get(replica_id)
        load, capacity = (heat.load_milli_mu_per_minute, heat.capacity_milli_mu_per_minute) if heat else (None, None)
        rows.append(
            {
                "replica_id": replica_id,
                "seat": seats.get(replica_id, ""),
                "slices": heat.slices if heat else 0,
                "load_milli_mu_per_minute": load,
                "capacity_milli_mu_per_minute": capacity,
                "utilization": round(load / capacity, 4) if load is not None and capacity else None,
            }
        )
    return rows


def heading(row: Row) -> Text:
    """What is said above a model's tables.

    Args:
        row: From `assignment_rows`.
    """
    text = Text(row["model_id"], "bold")
    generation = row["generation"] or {"incarnation": 0, "number": 0}
    text.append(f"  generation {generation['incarnation']}/{generation['number']}, {_age(row['age_s'])} old", "default")
    text.append(f", moved {mu(row['moved_milli_mu_per_minute'])} MU/min: {row['reason'] or 'no reason given'}", "dim")
    return text


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def slice_rows(row: Row) -> list[Row]:
    """The hottest slices of a model, with what SLICES draws.

    Args:
        row: From `assignment_rows`.
    """
    hottest = sorted(row["slices"], key=lambda each: -(each["utilization"] or 0.0))[:SLICES_SHOWN_MAX]
    return [with_heat(each) for each in hottest]


def with_heat(row: Row) -> Row:
    """Adds what a bar draws of a slice or a replica."""
    return {**row, "heat": (row["load_milli_mu_per_minute"], row["capacity_milli_mu_per_minute"])}


def more_slices(row: Row) -> str:
    """What is said of slices that are not shown; empty where all are."""
    more = len(row["slices"]) - SLICES_SHOWN_MAX
    return f"and {more:,} cooler slices; --tenant shows one tenant's, -o json all" if more > 0 else ""


def move_rows(rows: Sequence[Row]) -> list[Row]:
    """The moves of all models, with what MOVES draws.

    Args:
        rows: From `assignment_rows`.
    """
    return [{**move, "way": (move["from_replica_id"], move["to_replica_id"])} for row in rows for move in row["moves"]]


def screen(rows: Sequence[Row], notes: Sequence[str]) -> list[RenderableType]:
    """Everything, to be looked at while it changes.

    Args:
        rows: From `assignment_rows`.
        notes: Said below.
    """
    parts: list[RenderableType] = []
    for row in rows:
        parts += [heading(row), table_of(slice_rows(row), SLICES)]
        if more := more_slices(row):
            parts.append(Text(more, "dim"))
        parts += ["", table_of([with_heat(each) for each in row["replicas"]], REPLICAS), ""]
    return [*parts, *(Text(note, "dim") for note in notes)]
