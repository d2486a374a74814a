"""bench-sim: which files of a folder it measures, what it says of the others, and how it calls its metrics."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.simulation import measure, metric_names, scenario, traces
from simulation.arrivals import Workloads
from simulation.scenario import EXCERPT
from tests.unit.simulation import trace_files as files


def listed(folder: Path) -> tuple[list[str], str]:
    """The files it uses, and what it prints."""
    told = io.StringIO()
    return traces(folder, Workloads(folder), Console(file=told, width=300)), told.getvalue()


def test_every_file_is_used_or_said_to_be_left_out(tmp_path: Path) -> None:
    """Proves that recorded requests are used, and that of every other file the reason stands in the output: unknown,
    statistics, unreadable at once, damaged further down.
    """
    files.request_log(tmp_path, [(0, 5, 5), (1, 5, 5)], "good.csv.gz")
    files.request_log(tmp_path, [(0, 5, 5), (1, "five", 5)], "damaged.csv")
    files.length_pairs(tmp_path)
    (tmp_path / "README.md").write_text("# Traces\n")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    used, told = listed(tmp_path)
    assert used == ["good.csv.gz"]
    assert "used: good.csv.gz\n" in told
    assert "left out README.md: no load that is known here\n" in told
    assert "left out arxiv_x_lengths.csv.gz: holds lengths without times, no recorded requests\n" in told
    assert "left out damaged.csv: damaged.csv line 3: input_tokens 'five' is not a number\n" in told
    assert "left out gone.csv: cannot read" in told


def test_a_folder_without_a_recording_is_no_excerpt(tmp_path: Path) -> None:
    """Proves that the benchmark ends with the reason where a folder holds no recorded requests or is none."""
    files.length_pairs(tmp_path)
    with pytest.raises(SystemExit, match="holds recorded requests: leave TRACES empty"):
        listed(tmp_path)
    with pytest.raises(SystemExit, match="TRACES: cannot list the folder"):
        listed(tmp_path / "absent")


def test_metrics_carry_the_whole_stem() -> None:
    """Proves that a dot inside a name does not cut it, that packing does not show, and that likes are told apart."""
    assert metric_names(["a.week1.csv", "a.week2.csv.gz", "b-c.jsonl"]) == ["a_week1", "a_week2", "b_c"]
    assert metric_names(["a.csv", "a.csv.gz"]) == ["a", "a_csv_gz"]


@given(st.lists(st.text("a2._-", min_size=1, max_size=6), unique=True))
def test_no_two_files_share_a_metric(stems: list[str]) -> None:
    """Proves that names that differ stay different whatever they are."""
    names = [stem + end for stem, end in itertools.product(stems, (".csv", ".csv.gz", ""))]
    names = list(dict.fromkeys(names))
    assert len(set(metric_names(names))) == len(names)


def test_both_clocks_are_read() -> None:
    """Proves that a run counts its requests in the measured part and as a whole, on the clock and on the CPU."""
    measured = measure(scenario(EXCERPT, 2, 8.0, 1), Workloads(None))
    assert 0 < measured.requests < measured.run_requests
    assert 0 < measured.wall_s < measured.run_wall_s
    assert measured.cpu_s > 0
