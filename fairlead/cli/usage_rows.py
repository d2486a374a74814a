"""Usage on its way from the control plane to people and files: rows, totals, forms of a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import IO, Any

from fairlead.admin.v1 import usage_pb2
from fairlead.cli.connection import AdminConnection
from fairlead.cli.output import Row

COUNTERS = (
    "requests",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "prefill_milli_mu",
    "decode_milli_mu",
    "milli_mu",
)
"""What is added up; milli_mu is the charge, its prefill and decode parts together."""
FORMATS = ("csv", "json", "jsonl")
_CSV = ("hour", "tenant_id", "model_id", *COUNTERS, "mu")


class UsageExport:
    """An export as it arrives; iterate over it once.

    Args:
        connection: To the control plane.
        request: What to export.
    """

    def __init__(self, connection: AdminConnection, request: usage_pb2.ExportUsageRequest) -> None:
        self._connection = connection
        self._request = request
        self.complete_until: str | None = None
        """Up to when every router had written its usage, ISO 8601; known with the first row."""
        self.totals: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        """The sums of the rows that have arrived."""
        self.rows = 0
        """How many have arrived."""

    def __iter__(self) -> Iterator[Row]:
        """Yields one row per hour, model and tenant.

        Raises:
            FairleadError: What the platform answered; what has arrived is then not all.
        """
        for answer in self._connection.stream(self._connection.usage.ExportUsage, self._request):
            if answer.HasField("complete_until_time"):
                self.complete_until = _iso(answer.complete_until_time.seconds)
            for message in answer.rows:
                row = _row(message)
                self.rows += 1
                for counter in COUNTERS:
                    self.totals[counter] += row[counter]
                yield row


def by_tenant_and_model(rows: Iterable[Row]) -> list[Row]:
    """Adds hours up: one row per tenant and model, the largest charge first."""
    sums: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        held = sums.setdefault((row["tenant_id"], row["model_id"]), dict.fromkeys(COUNTERS, 0))
        for counter in COUNTERS:
            held[counter] += row[counter]
    added: list[Row] = [
        {"tenant_id": tenant_id, "model_id": model_id, **held} for (tenant_id, model_id), held in sums.items()
    ]
    return sorted(added, key=lambda row: (-row["milli_mu"], row["tenant_id"], row["model_id"]))


def write(export: UsageExport, rows: Iterable[Row], form: str, file: IO[str]) -> None:
    """Writes rows as they arrive.

    Args:
        export: Tells totals and completeness at the end.
        rows: Its rows.
        form: One of FORMATS: CSV as RFC 4180 with a header; JSON with `rows`, `totals` and `complete_until_time`; or
            one JSON object per row.
        file: Opened with newline="".
    """
    if form == "csv":
        table = csv.DictWriter(file, _CSV, lineterminator="\r\n")
        table.writeheader()
        table.writerows({**row, "mu": mu_of(row["milli_mu"])} for row in rows)
    elif form == "jsonl":
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    else:
        file.write('{"rows": [')
        for number, row in enumerate(rows):
            file.write(f"{',' if number else ''}\n  {json.dumps(row, ensure_ascii=False)}")
        tail: dict[str, Any] = {"totals": export.totals, "complete_until_time": export.complete_until}
        file.write("\n], " + json.dumps(tail).removeprefix("{") + "\n")


def mu_of(milli_mu: int) -> str:
    """Milli-MU as MU with three decimals, exactly."""
    return f"{milli_mu // 1000}.{milli_mu % 1000:03}"


def share(row: Row, rows: Sequence[Row]) -> float:
    """A row's part of the charge of all, 0 to 1."""
    whole: int = sum(each["milli_mu"] for each in rows)
    return row["milli_mu"] / whole if whole else 0.0


def _row(message: usage_pb2.UsageRow) -> dict[str, Any]:
    return {
        "hour": _iso(message.hour.seconds),
        "tenant_id": message.tenant_id,
        "model_id": message.model_id,
        "requests": message.requests,
        "input_tokens": message.input_tokens,
        "cached_input_tokens": message.cached_input_tokens,
        "output_tokens": message.output_tokens,
        "prefill_milli_mu": message.prefill_milli_mu,
        "decode_milli_mu": message.decode_milli_mu,
        "milli_mu": message.prefill_milli_mu + message.decode_milli_mu,
    }


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
