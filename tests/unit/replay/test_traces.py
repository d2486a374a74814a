"""Trace readers: every recorded format, and every way a file can be wrong."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead import InvalidArgumentError
from fairlead.replay import Trace, TraceRequest, read_trace
from fairlead.replay.traces import spread_ticks

CSV = "t_s,input_tokens,output_tokens\n10.0,374,44\n14.5,396,109\n20,1,2\n"


def write(folder: Path, text: str, name: str = "trace.csv", *, packed: bool = False) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_csv_plain_or_packed(tmp_path: Path, packed: bool) -> None:
    """Times begin at the first request; compression is recognised by content, not by name."""
    trace = read_trace(write(tmp_path, CSV, packed=packed))
    assert trace == Trace(
        "trace.csv",
        (TraceRequest(0.0, 374, 44), TraceRequest(4.5, 396, 109), TraceRequest(10.0, 1, 2)),
        (),
    )


def test_clients_are_kept(tmp_path: Path) -> None:
    """A client column says who sent a request."""
    trace = read_trace(write(tmp_path, "t_s,client,input_tokens,output_tokens\n0,13,5,6\n"))
    assert trace.requests == (TraceRequest(0.0, 5, 6, client="13"),)


def test_json_lines_are_spread_inside_their_tick(tmp_path: Path) -> None:
    """Three requests of one tick are a third of a tick apart, and their prefixes are kept."""
    rows = [(0, [0, 1]), (0, [0, 2]), (0, [3]), (3000, []), (6000, [])]
    lines = [
        json.dumps({"timestamp": at, "input_length": 600, "output_length": 5, "hash_ids": ids}) for at, ids in rows
    ]
    trace = read_trace(write(tmp_path, "\n".join(lines) + "\n", "t.jsonl", packed=True))
    assert [request.arrival_s for request in trace.requests] == [0.0, 1.0, 2.0, 3.0, 6.0]
    assert trace.requests[1].prefix_blocks == (0, 2)
    assert "tick" in trace.notes[0]


def test_the_shipped_excerpt() -> None:
    """The default trace is there, two minutes long, and needs no repair."""
    trace = read_trace()
    assert len(trace.requests) == 682
    assert 115 < trace.duration_s < 120
    assert trace.notes == ()


def test_a_part_of_a_trace(tmp_path: Path) -> None:
    """start and duration count from the file's first request, and times are made relative to start."""
    trace = read_trace(write(tmp_path, CSV), start_s=4.0, duration_s=3.0)
    assert trace.requests == (TraceRequest(0.5, 396, 109),)
    with pytest.raises(InvalidArgumentError, match="10 s long"):
        read_trace(write(tmp_path, CSV), start_s=11.0)
    with pytest.raises(InvalidArgumentError, match="above 0"):
        read_trace(write(tmp_path, CSV), duration_s=0)


def test_what_can_be_meant_is_put_right_and_noted(tmp_path: Path) -> None:
    """Unsorted times are sorted, zero lengths become one."""
    trace = read_trace(write(tmp_path, "t_s,input_tokens,output_tokens\n5,0,1\n1,7,0\n"))
    assert trace.requests == (TraceRequest(0.0, 7, 1), TraceRequest(4.0, 1, 1))
    assert trace.notes == ("2 lengths of 0 tokens were taken as 1", "times were not in order: sorted")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no column t_s"),
        ("input_tokens,output_tokens\n1,2\n", "no column t_s"),
        ("t_s,input_tokens,output_tokens\n", "holds no requests"),
        (CSV + "21,5\n", "line 5: 2 values where the header names 3"),
        (CSV + "21,5,five\n", "line 5: output_tokens 'five' is not a number"),
        (CSV + "21,5,1e12\n", "line 5: output_tokens '1e12' is not a count"),
        (CSV + "21,-5,1\n", "line 5: input_tokens '-5'"),
        (CSV + "21,1.5,1\n", "line 5: input_tokens '1.5'"),
        (CSV + "nan,5,1\n", "line 5: the time 'nan'"),
        (CSV + "-1,5,1\n", "line 5: the time '-1' is negative"),
        ('{"timestamp":0,"input_length":1,"output_length":1}\n{"timestamp":1,"inp', "line 2: not a JSON object"),
        ('{"timestamp":0,"input_length":1}\n', "line 1: not a JSON object"),
        ('{"timestamp":0,"input_length":[1],"output_length":1}\n', r"line 1: input_length \[1\] is not a number"),
        ('{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":["x"]}\n', "line 1: hash_ids"),
        ('{"timestamp":' + 100_000 * "[" + "\n", "line 1: not a JSON object"),
        (CSV + '21,"5' + 140_000 * "5" + ",6\n", r"line 5: not CSV .*is a quote left open"),
    ],
)
def test_damage_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    """What cannot be meant is an error that says where and what."""
    with pytest.raises(InvalidArgumentError, match=problem):
        read_trace(write(tmp_path, text))


def test_a_cut_off_archive_says_how_much_was_whole(tmp_path: Path) -> None:
    """A truncated download is told from a bad row."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress((CSV + "21,5,6\n" * 5000).encode())[:-20])
    with pytest.raises(InvalidArgumentError, match=r"damaged or cut off after \d+ whole lines"):
        read_trace(path)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    """Neither ends in a traceback of the codec or the file system."""
    path = tmp_path / "t.bin"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InvalidArgumentError, match="not text"):
        read_trace(path)
    with pytest.raises(InvalidArgumentError, match="cannot read the trace"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(InvalidArgumentError, match="cannot read the trace"):
        read_trace(tmp_path)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """No content whatever leads to anything but a trace or an InvalidArgumentError."""
    path = tmp_path_factory.getbasetemp() / "any"
    for head in (b"", b"t_s,input_tokens,output_tokens\n", b'{"timestamp":'):
        path.write_bytes(head + data)
        with contextlib.suppress(InvalidArgumentError):
            read_trace(path)


@given(st.lists(st.integers(0, 20).map(lambda tick: tick * 3.0), min_size=1, max_size=60).map(sorted))
def test_spreading_keeps_order_and_ticks(times_s: list[float]) -> None:
    """Nobody moves earlier, nobody leaves its tick, and the order stays."""
    spread = spread_ticks(times_s)
    assert spread == sorted(spread)
    for before, after in zip(times_s, spread, strict=True):
        later = [time_s for time_s in times_s if time_s > before]
        assert before <= after
        assert not later or after < min(later)
