"""Requests drawn from rates and lengths per client: counts, shares, burstiness, lengths, and wrong files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import InvalidArgumentError
from simulation.traces import Workload, open_workload
from simulation.traces.distributions import Family, arrivals, shape_of
from tests.unit.simulation.trace_files import EVEN, LENGTHS, lengths_row, servegen, write

DAY = [
    (600 * window, client, count, 2.0, "Gamma", 0.25, 1)
    for window in range(24)
    for client, count in (("a", 90), ("b", 30))
]


def of(workload: Workload, client: str, field: str) -> np.ndarray:
    return np.array([getattr(request, field) for request in workload.requests if request.client == client])


def test_counts_and_shares_are_those_of_the_file(tmp_path: Path) -> None:
    """At scale 1 every window has exactly its count, so rate and shares are exact."""
    workload = open_workload(servegen(tmp_path, DAY), seed=3)
    assert workload.clients == ("a", "b")
    assert workload.duration_s == 24 * 600
    assert workload.requests_per_s == pytest.approx(0.2)
    windows = Counter((request.client, request.arrival_s // 600) for request in workload.requests)
    assert windows == {(client, window): count for window in range(24) for client, count in (("a", 90), ("b", 30))}
    assert workload.notes == ()


@pytest.mark.parametrize("wanted", [{"rate_scale": 0.1}, {"rate_scale": 7.3}, {"requests_per_s": 0.5}])
def test_scaling_keeps_the_shares(tmp_path: Path, wanted: dict[str, float]) -> None:
    """One factor for all: the mean rate is met within 5 %, and a keeps three quarters."""
    workload = open_workload(servegen(tmp_path, DAY), **wanted)  # type: ignore[arg-type]
    assert workload.requests_per_s == pytest.approx(
        wanted.get("requests_per_s", wanted.get("rate_scale", 0) * 0.2), rel=0.05
    )
    assert len(of(workload, "a", "images")) / len(workload.requests) == pytest.approx(0.75, abs=0.03)


def test_a_client_of_few_requests_is_not_lost_by_scaling(tmp_path: Path) -> None:
    """Ten requests a window at a scale of 0.03 are 0.3 on average, not none."""
    path = servegen(tmp_path, [(600 * window, "a", 10, 1, "Gamma", 1, 1) for window in range(1_000)])
    assert len(open_workload(path, rate_scale=0.03).requests) == pytest.approx(300, abs=50)


def test_the_same_seed_draws_the_same_requests(tmp_path: Path) -> None:
    """A workload repeats by its seed, differs by another, and a part agrees with the whole where they overlap."""
    path = servegen(tmp_path, DAY)
    whole = open_workload(path, seed=5)
    assert open_workload(path, seed=5) == whole
    assert open_workload(path, seed=6).requests != whole.requests
    part = open_workload(path, seed=5, start_s=1_000, duration_s=2_000)
    expected = [request for request in whole.requests if 1_000 <= request.arrival_s < 3_000]
    assert part.duration_s == 2_000
    assert [request.input_tokens for request in part.requests] == [request.input_tokens for request in expected]
    assert [request.arrival_s + 1_000 for request in part.requests] == pytest.approx(
        [request.arrival_s for request in expected]
    )


def test_either_file_of_the_pair_opens_both(tmp_path: Path) -> None:
    """The lengths stand for the pair as well as the rates."""
    rates = servegen(tmp_path, DAY)
    assert open_workload(tmp_path / "servegen_x_lengths_week1.csv.gz") == open_workload(rates)


def test_a_partner_of_another_week_is_found_by_its_beginning(tmp_path: Path) -> None:
    """Where the exact partner is missing, one with the same beginning serves; without any it says so."""
    rates = servegen(tmp_path, DAY)
    lengths = tmp_path / "servegen_x_lengths_week1.csv.gz"
    lengths.rename(tmp_path / "servegen_x_lengths.csv.gz")
    assert open_workload(rates).requests
    (tmp_path / "servegen_x_lengths.csv.gz").unlink()
    with pytest.raises(InvalidArgumentError, match=r"put that file beside it as servegen_x_lengths_week1\.csv\.gz"):
        open_workload(rates)


def test_lengths_follow_the_quantiles_of_client_and_window(tmp_path: Path) -> None:
    """Each client has its own distribution, which changes after six hours."""
    rates = [(start_s, client, 2_000, 1, "Gamma", 1, 1) for start_s in (0, 21_600) for client in "ab"]
    lengths = [
        lengths_row("a", "input_tokens", (10, 20, 40, 80, 160)), lengths_row("a", "output_tokens", EVEN),
        lengths_row("a", "input_tokens", (1000, 1000, 1000, 1000, 1000), 21_600),
        lengths_row("a", "output_tokens", EVEN, 21_600),
        lengths_row("b", "input_tokens", (7, 7, 7, 7, 7)), lengths_row("b", "output_tokens", (0, 0, 1, 1, 1)),
    ]  # fmt: skip
    workload = open_workload(servegen(tmp_path, rates, lengths))
    early = np.array(
        [request.input_tokens for request in workload.requests if request.client == "a" and request.arrival_s < 600]
    )
    late = [request.input_tokens for request in workload.requests if request.client == "a" and request.arrival_s > 600]
    assert [(early <= value).mean() for value in (20, 40, 80)] == pytest.approx([0.25, 0.5, 0.75], abs=0.04)
    assert (early.min(), early.max()) >= (10, 150)
    assert set(late) == {1000}
    assert set(of(workload, "b", "input_tokens")) == {7}
    assert set(of(workload, "b", "output_tokens")) == {1}
    assert "25% of the requests drew lengths from their client's nearest window that has some" in workload.notes
    assert any("lengths of 0 tokens were taken as 1" in note for note in workload.notes)


def test_a_client_without_lengths_draws_from_the_others(tmp_path: Path) -> None:
    """The pool has the others in proportion to what they sent, and a note says how much came from it."""
    rates = [(0, "a", 900, 1, "Gamma", 1, 1), (0, "b", 100, 1, "Gamma", 1, 1), (0, "big", 3_000, 1, "Weibull", 1, 1)]
    lengths = [
        lengths_row(client, field, (value,) * 5)
        for client, value in (("a", 10), ("b", 50))
        for field in ("input_tokens", "output_tokens")
    ]
    workload = open_workload(servegen(tmp_path, rates, lengths))
    inputs, outputs = of(workload, "big", "input_tokens"), of(workload, "big", "output_tokens")
    assert (inputs == outputs).all()  # both from the same client of the pool
    assert (inputs == 50).mean() == pytest.approx(0.1, abs=0.03)
    assert "1 clients have no lengths of their own: 75% of the requests" in workload.notes[0]


def test_rates_of_another_week_weigh_the_pool_by_what_each_sends(tmp_path: Path) -> None:
    """Where no window of the lengths is the rates' own, nearest windows serve and the pool keeps its proportions."""
    rates = [(604_800, client, count, 1, "Gamma", 1, 1) for client, count in (("a", 900), ("b", 100), ("big", 3_000))]
    lengths = [
        lengths_row(client, field, (value,) * 5)
        for client, value in (("a", 10), ("b", 50))
        for field in ("input_tokens", "output_tokens")
    ]
    workload = open_workload(servegen(tmp_path, rates, lengths))
    assert set(of(workload, "a", "input_tokens")) == {10}
    assert (of(workload, "big", "input_tokens") == 50).mean() == pytest.approx(0.1, abs=0.03)
    assert any("nearest window" in note for note in workload.notes)


def test_images_are_counted_and_their_tokens_are_input(tmp_path: Path) -> None:
    """Text, image, audio and video tokens add up; more images go with more image tokens."""
    fields = {
        "text_tokens": (100,) * 5, "image_tokens": (0, 500, 1000, 1500, 2000), "image_count": (0, 1, 2, 3, 4),
        "audio_tokens": (7,) * 5, "audio_count": (1,) * 5, "video_tokens": (0,) * 5, "video_count": (0,) * 5,
        "output_tokens": EVEN,
    }  # fmt: skip
    lengths = [lengths_row("a", field, values) for field, values in fields.items()]
    rates = [(0, "a", 2_000, 1, "Gamma", 1, 1), (0, "c", 2_000, 1, "Gamma", 1, 1)]
    workload = open_workload(servegen(tmp_path, rates, lengths))
    for client in "ac":  # with lengths, and from the pool
        images, inputs = of(workload, client, "images"), of(workload, client, "input_tokens")
        assert images.mean() == pytest.approx(2, rel=0.05)
        assert inputs.mean() == pytest.approx(1_107, rel=0.05)
        assert np.abs(inputs - 107 - 500 * images).max() <= 251
    assert "tokens of images, audio and video count as input" in workload.notes


@pytest.mark.parametrize(
    ("family", "cv"), [("Gamma", 0.3), ("Gamma", 1.0), ("Gamma", 4.0), ("Weibull", 0.5), ("Weibull", 2.0)]
)
def test_arrivals_vary_as_published(tmp_path: Path, family: str, cv: float) -> None:
    """The coefficient of variation between arrivals is the window's, for both families."""
    rates = [(600 * window, "a", 2_000, cv, family, 0, 0) for window in range(4)]
    times = of(open_workload(servegen(tmp_path, rates)), "a", "arrival_s")
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.15)


def test_the_published_shape_serves_where_no_variation_is_given(tmp_path: Path) -> None:
    """A gamma shape of 4 is a coefficient of variation of one half."""
    times = of(open_workload(servegen(tmp_path, [(0, "a", 4_000, "", "Gamma", 4, 1)])), "a", "arrival_s")
    assert np.diff(times).std() / np.diff(times).mean() == pytest.approx(0.5, rel=0.1)


@given(
    count=st.integers(0, 300),
    cv=st.floats(0, 1_000),
    family=st.sampled_from(Family),
    seed=st.integers(0, 2**32),
)
def test_arrivals_stay_in_their_span(count: int, cv: float, family: Family, seed: int) -> None:
    """However bursty, a window has its count of sorted arrivals inside it."""
    times = arrivals(np.random.default_rng(seed), count, 600.0, family, shape_of(family, cv))
    assert len(times) == count
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < 600.0)).all()


def test_windows_out_of_order_are_sorted_and_gaps_are_empty(tmp_path: Path) -> None:
    """Order does not matter but is noted; a window that is not there is one in which nobody sent anything."""
    shuffled = [row for row in reversed(DAY) if row[0] != 1_200]
    workload = open_workload(servegen(tmp_path, shuffled))
    assert workload.notes == ("windows were not in order: sorted",)
    assert not [request for request in workload.requests if 1_200 <= request.arrival_s < 1_800]
    with pytest.raises(InvalidArgumentError, match="nobody sent anything in this part"):
        open_workload(tmp_path / "servegen_x_rates_week1.csv.gz", start_s=1_200, duration_s=600)


def test_windows_of_zero_are_windows_in_which_nobody_sent(tmp_path: Path) -> None:
    """A part whose windows are there but all zero is refused, with a rate of its own too, which nothing could reach."""
    path = servegen(tmp_path, [(0, "a", 0, 1, "Gamma", 1, 1), (600, "a", 60, 1, "Gamma", 1, 1)])
    for rate in (None, 5.0):
        with pytest.raises(InvalidArgumentError, match="nobody sent anything in this part"):
            open_workload(path, duration_s=600, requests_per_s=rate)
    assert open_workload(path, duration_s=900, requests_per_s=0.2).requests


def test_a_file_of_a_later_week_begins_at_its_first_window(tmp_path: Path) -> None:
    """Times start at the file's beginning, and lengths are found by the original clock."""
    rates = [(604_800 + row[0], *row[1:]) for row in DAY]
    lengths = [lengths_row("a", field, (9,) * 5, 604_800) for field in ("input_tokens", "output_tokens")]
    workload = open_workload(servegen(tmp_path, rates, lengths), duration_s=600)
    assert workload.requests[-1].arrival_s < 600
    assert len(workload.requests) == 120


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, "a", -5, 1, "Gamma", 1, 1), "requests '-5' must be"),
        ((0, "a", "nan", 1, "Gamma", 1, 1), "requests 'nan' is not a number"),
        ((0, "a", 1e12, 1, "Gamma", 1, 1), "requests '1000000000000.0' must be"),
        ((0, "a", 5, -1, "Gamma", 1, 1), "cv_interarrival '-1' must be"),
        ((0, "a", 5, "", "Gamma", "", ""), "neither cv_interarrival nor p1"),
        ((0, "a", 5, 1, "Pareto", 1, 1), "unknown pattern 'Pareto'; known: Gamma, Weibull"),
        ((-600, "a", 5, 1, "Gamma", 1, 1), "window_start_s '-600' must be"),
        ((600, "a", 90, 1, "Gamma", 1), "6 values where the header names 7"),
        ((0, "b", 5, 1, "Gamma", 1, 1), "a client twice in a window"),
    ],
)
def test_wrong_rates_are_refused(tmp_path: Path, row: tuple[object, ...], message: str) -> None:
    """Every way a row of rates can be wrong is named."""
    with pytest.raises(InvalidArgumentError, match=message):
        open_workload(servegen(tmp_path, [(0, "b", 10, 1, "Gamma", 1, 1), row]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([lengths_row("a", "input_tokens", EVEN)], "client 'a' lacks input or output lengths"),
        ([lengths_row("a", "input_tokens", EVEN)] * 2, "input_tokens of client 'a' is there twice"),
        ([lengths_row("a", "input_tokens", (5, 4, 3, 2, 1))], "quantiles must not fall"),
        ([lengths_row("a", "input_tokens", (1, 2, 3, 4, 1e9))], "q100 '1000000000.0' must be between 0 and 1e"),
        ([lengths_row("a", "input_tokens", (1, 2, float("nan"), 4, 5))], "q50 'nan' is not a number"),
        ([lengths_row("a", "input_tokens", (-1, 2, 3, 4, 5))], "q0 '-1' must be"),
        ([], "holds no rows"),
    ],
)
def test_wrong_lengths_are_refused(tmp_path: Path, rows: list[tuple[object, ...]], message: str) -> None:
    """Every way the lengths can be wrong is named."""
    with pytest.raises(InvalidArgumentError, match=message):
        open_workload(servegen(tmp_path, DAY, rows))


def test_too_much_at_once_is_refused_before_it_is_drawn(tmp_path: Path) -> None:
    """A week of a giant is refused with its size and what to do."""
    path = servegen(tmp_path, [(0, "a", 900_000_000, 1, "Gamma", 1, 1)])
    with pytest.raises(InvalidArgumentError, match=r"about 900,000,000 requests.*shorter duration_s or a smaller"):
        open_workload(path)
    assert open_workload(path, rate_scale=1e-6).requests_per_s == pytest.approx(1.5)


def test_nothing_sent_at_all(tmp_path: Path) -> None:
    """Rates of zero only, a part past the end, and a scale that leaves nothing are said, not returned."""
    with pytest.raises(InvalidArgumentError, match="holds no requests"):
        open_workload(servegen(tmp_path, [(0, "a", 0, 1, "Gamma", 1, 1)]))
    path = servegen(tmp_path, DAY)
    with pytest.raises(InvalidArgumentError, match="nothing from 14400 s on"):
        open_workload(path, start_s=14_400)
    with pytest.raises(InvalidArgumentError, match=r"no request of .* falls into this part"):
        open_workload(path, rate_scale=1e-9)


def test_a_truncated_pair_is_refused(tmp_path: Path) -> None:
    """Half a download of either file is named as that file."""
    path = servegen(tmp_path, DAY)
    lengths = tmp_path / "servegen_x_lengths_week1.csv.gz"
    for damaged in (path, lengths):
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-12])
        with pytest.raises(InvalidArgumentError, match=rf"{damaged.name}.*damaged or cut off"):
            open_workload(path)
        damaged.write_bytes(whole)
    write(tmp_path, lengths.name, LENGTHS.replace("field", "kind"), [])
    with pytest.raises(InvalidArgumentError):
        open_workload(path)
