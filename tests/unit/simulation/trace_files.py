"""Small files of every kind of load, written where a test wants them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

QUANTILES = ("q0", "q25", "q50", "q75", "q100")
RATES = "window_start_s,client,requests,cv_interarrival,pattern,p1,p2"
LENGTHS = "window_start_s,client,field,mean," + ",".join(QUANTILES)
EVEN = (100, 150, 200, 250, 300)
"""Uniform between 100 and 300: mean 200."""


def write(folder: Path, name: str, header: str, rows: Iterable[Sequence[object]]) -> Path:
    path = folder / name
    text = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def lengths_row(client: str, field: str, values: Sequence[float], start_s: int = 0) -> tuple[object, ...]:
    return (start_s, client, field, sum(values) / len(values), *values)


def servegen(
    folder: Path,
    rates: Iterable[Sequence[object]],
    lengths: Iterable[Sequence[object]] | None = None,
    name: str = "servegen_x",
) -> Path:
    """A pair of files; by default clients a and b have even lengths."""
    if lengths is None:
        lengths = [lengths_row(client, field, EVEN) for client in "ab" for field in ("input_tokens", "output_tokens")]
    write(folder, f"{name}_lengths_week1.csv.gz", LENGTHS, lengths)
    return write(folder, f"{name}_rates_week1.csv.gz", RATES, rates)


def request_log(folder: Path, rows: Iterable[Sequence[object]], name: str = "azure_x.csv.gz") -> Path:
    return write(folder, name, "t_s,input_tokens,output_tokens", rows)


def prefix_log(folder: Path, rows: Iterable[tuple[int, int, int, list[int]]]) -> Path:
    path = folder / "mooncake_x.jsonl"
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return path


def client_log(folder: Path) -> Path:
    rows = [(0, "u1", 10, 5), (1, "u2", 20, 6), (2, "u2", 30, 7)]
    return write(folder, "vtc_x.csv", "t_s,client,input_tokens,output_tokens", rows)


def length_pairs(folder: Path, rows: Iterable[Sequence[object]] = ((100, 10), (200, 20))) -> Path:
    return write(folder, "arxiv_x_lengths.csv.gz", "input_tokens,output_tokens", rows)


def curve(folder: Path, rows: Iterable[Sequence[object]] | None = None) -> Path:
    """Two services on a grid of 600 s for an hour: code falls from 120 to 20 per minute, conv stays at 60."""
    if rows is None:
        rows = [("code", 600 * step, 120 - 20 * step, 0, 999) for step in range(6)]
        rows += [("conv", 600 * step, 60, 0, 999) for step in range(6)]
    return write(folder, "azure_llm_x_rpm.csv", "service,t_s,rpm_mean,rpm_min,rpm_max", rows)


def kind_quantiles(folder: Path, rows: Iterable[Sequence[object]] | None = None) -> Path:
    if rows is None:
        rows = [
            ("image", "num_images", 1, 1), ("image", "num_images", 50, 1), ("image", "num_images", 99, 9),
            ("image", "input_tokens", 1, 500), ("image", "input_tokens", 50, 1000), ("image", "input_tokens", 99, 9000),
            ("image", "output_tokens", 1, 50), ("image", "output_tokens", 99, 50),
            ("text", "input_tokens", 1, 100), ("text", "input_tokens", 99, 300),
            ("text", "output_tokens", 1, 10), ("text", "output_tokens", 99, 30),
        ]  # fmt: skip
    return write(folder, "azure_lmm_x_quantiles.csv", "request_kind,field,percentile,value", rows)


def step_times(folder: Path) -> Path:
    header = "config,component,batch_or_tokens,seq_or_context_len,ms"
    return write(folder, "engine_step_times.csv.gz", header, [("c", "decode_step", 1, 128, 6.5)])
