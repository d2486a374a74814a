"""Workloads from recorded requests, lengths, rate curves and quantiles; and what a folder holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fairlead.errors import InvalidArgumentError
from simulation.traces import Kind, SimRequest, Workload, left_out, open_workload, recognise, recognise_folder
from tests.unit.simulation import trace_files as files

LOG = [(10 + second, 100 + second, 5) for second in range(100)]


def values(workload: Workload, field: str, client: str | None = None) -> np.ndarray:
    return np.array([getattr(request, field) for request in workload.requests if client in (None, request.client)])


def test_recorded_requests_come_as_they_are(tmp_path: Path) -> None:
    """Arrivals begin at 0, nobody is named, and nothing is drawn."""
    workload = open_workload(files.request_log(tmp_path, LOG))
    assert workload.requests[:2] == (SimRequest(0.0, "", 100, 5), SimRequest(1.0, "", 101, 5))
    assert (len(workload.requests), workload.clients, workload.notes) == (100, ("",), ())
    assert workload.requests_per_s == pytest.approx(1.0)
    assert open_workload(files.request_log(tmp_path, LOG), seed=9) == workload


def test_clients_and_prefixes_are_kept(tmp_path: Path) -> None:
    """Who sent a request and which blocks its prompt shares survive; the busiest client is first."""
    assert open_workload(files.client_log(tmp_path)).clients == ("u2", "u1")
    path = files.prefix_log(tmp_path, [(0, 600, 5, [1, 2]), (0, 700, 6, [1, 3]), (3000, 800, 7, [])])
    workload = open_workload(path)
    assert [request.prefix for request in workload.requests] == [(1, 2), (1, 3), ()]
    assert [request.arrival_s for request in workload.requests] == [0.0, 1.5, 3.0]
    assert "tick" in workload.notes[0]


def test_a_part_of_a_recording(tmp_path: Path) -> None:
    """Twenty seconds from the thirtieth on, with times from the part's beginning."""
    workload = open_workload(files.request_log(tmp_path, LOG), start_s=30, duration_s=20)
    assert values(workload, "input_tokens").tolist() == list(range(130, 150))
    assert workload.requests[0].arrival_s == 0.0
    assert workload.duration_s == 20


def test_a_denser_recording_runs_faster(tmp_path: Path) -> None:
    """Twice the rate takes twice as much of the trace, keeps every request in order, and says so."""
    path = files.request_log(tmp_path, LOG)
    workload = open_workload(path, duration_s=20, rate_scale=2.0)
    assert values(workload, "input_tokens").tolist() == list(range(100, 140))
    assert workload.requests[-1].arrival_s == pytest.approx(19.5)
    assert "2 times as fast" in workload.notes[0]
    assert open_workload(path, requests_per_s=4.0).requests_per_s == pytest.approx(4.0)


@pytest.mark.parametrize(
    "wanted", [{"duration_s": 10.0, "requests_per_s": 3.0}, {"start_s": 20.0, "requests_per_s": 0.1}]
)
def test_a_part_of_a_recording_at_a_wanted_rate(tmp_path: Path, wanted: dict[str, float]) -> None:
    """The rate asked for is that of the part, even where the trace's own rate changes on the way."""
    ramp = [(float(np.sqrt(index)), 10, 5) for index in range(1_000)]
    workload = open_workload(files.request_log(tmp_path, ramp), **wanted)  # type: ignore[arg-type]
    assert workload.requests_per_s == pytest.approx(wanted["requests_per_s"], rel=0.05)
    assert 0 <= workload.requests[0].arrival_s <= workload.requests[-1].arrival_s < workload.duration_s


def test_recordings_that_came_at_once(tmp_path: Path) -> None:
    """One request is a second long; several at one moment have no rate, and that is said."""
    assert open_workload(files.request_log(tmp_path, [(5, 10, 5)])).duration_s == 1.0
    with pytest.raises(InvalidArgumentError, match="all requests came at once"):
        open_workload(files.request_log(tmp_path, [(5, 10, 5)] * 3))


def test_recordings_are_repaired_aloud_or_refused(tmp_path: Path) -> None:
    """Times out of order and zero lengths are put right with a note; a huge length, NaN or a cut file is refused."""
    workload = open_workload(files.request_log(tmp_path, [(5, 10, 0), (1, 20, 5)]))
    assert values(workload, "input_tokens").tolist() == [20, 10]
    assert len(workload.notes) == 2
    for row in ((6, 10**9, 5), ("nan", 10, 5), (6, -1, 5)):
        with pytest.raises(InvalidArgumentError, match="line 3"):
            open_workload(files.request_log(tmp_path, [(5, 10, 5), row]))
    path = files.request_log(tmp_path, LOG)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidArgumentError, match="damaged or cut off"):
        open_workload(path)
    with pytest.raises(InvalidArgumentError, match="nothing from 500 s on"):
        open_workload(files.request_log(tmp_path, LOG), start_s=500)


def test_lengths_arrive_by_chance_at_the_wanted_rate(tmp_path: Path) -> None:
    """Rate within 5 %, gaps as Poisson's, pairs kept together, both pairs equally often."""
    workload = open_workload(files.length_pairs(tmp_path), duration_s=1_000, requests_per_s=2.5, rate_scale=2.0)
    assert workload.requests_per_s == pytest.approx(5.0, rel=0.05)
    gaps = np.diff(values(workload, "arrival_s"))
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.05)
    assert {(request.input_tokens, request.output_tokens) for request in workload.requests} == {(100, 10), (200, 20)}
    assert (values(workload, "input_tokens") == 100).mean() == pytest.approx(0.5, abs=0.05)
    assert workload.notes == ("the file has no times: arrivals are Poisson",)
    again = open_workload(files.length_pairs(tmp_path), duration_s=1_000, requests_per_s=2.5, rate_scale=2.0)
    assert again == workload


def test_lengths_last_as_long_as_their_rows(tmp_path: Path) -> None:
    """Without a duration there are about as many requests as rows; zeros and a start are remarked on."""
    path = files.length_pairs(tmp_path, [(0, 10)] * 1_000)
    workload = open_workload(path, requests_per_s=10, start_s=5)
    assert workload.duration_s == 100
    assert set(values(workload, "input_tokens")) == {1}
    assert any("1000 lengths of 0 tokens" in note for note in workload.notes)
    assert any("start_s does not matter" in note for note in workload.notes)


@pytest.mark.parametrize("source", [files.length_pairs, files.kind_quantiles])
def test_sources_without_a_rate_ask_for_one(tmp_path: Path, source: object) -> None:
    """Lengths and quantiles say nothing of a rate: it must be given."""
    assert callable(source)
    with pytest.raises(InvalidArgumentError, match="give requests_per_s"):
        open_workload(source(tmp_path))


@pytest.mark.parametrize("row", [("", 5), ("1.5", 5), (-1, 5), (10**9, 5), ("nan", 5), (5,)])
def test_wrong_lengths_are_refused_with_their_line(tmp_path: Path, row: tuple[object, ...]) -> None:
    """Every way a pair can be wrong is named."""
    with pytest.raises(InvalidArgumentError, match="line 3"):
        open_workload(files.length_pairs(tmp_path, [(1, 1), row]), requests_per_s=1)


def test_rate_curves_are_followed_service_by_service(tmp_path: Path) -> None:
    """Each step has its own rate: code falls to a sixth, conv stays, both within the noise of counting."""
    workload = open_workload(files.curve(tmp_path), rate_scale=5)
    code, conv = (values(workload, "arrival_s", client) for client in ("code", "conv"))
    expected = np.array([120, 100, 80, 60, 40, 20]) * 50.0
    assert np.abs(np.histogram(code, 6, (0, 3_600))[0] - expected).max() < 5 * np.sqrt(expected.max())
    assert np.abs(np.histogram(conv, 6, (0, 3_600))[0] - 3_000).max() < 5 * np.sqrt(3_000)
    assert workload.duration_s == 3_600
    assert workload.requests_per_s == pytest.approx(5 * (70 + 60) / 60, rel=0.05)


def test_lengths_of_a_curve_meet_the_published_facts(tmp_path: Path) -> None:
    """Output quantiles are those published within 10 %, mean totals within 3 %, and a note says where they are from."""
    workload = open_workload(files.curve(tmp_path), rate_scale=10)
    for client, published, total in (("code", (8, 43, 79, 271), 2_534), ("conv", (41, 342, 455, 694), 1_737)):
        outputs = values(workload, "output_tokens", client)
        assert np.quantile(outputs, [0.5, 0.9, 0.95, 0.99]) == pytest.approx(published, rel=0.1)
        assert (outputs + values(workload, "input_tokens", client)).mean() == pytest.approx(total, rel=0.03)
    assert "published" in workload.notes[0]


def test_a_part_of_a_curve_agrees_with_the_whole(tmp_path: Path) -> None:
    """Steps are drawn on their own, so an excerpt has the requests of the whole; the rate asked for is the part's."""
    whole = open_workload(files.curve(tmp_path), seed=4)
    part = open_workload(files.curve(tmp_path), seed=4, start_s=900, duration_s=600)
    expected = [request.output_tokens for request in whole.requests if 900 <= request.arrival_s < 1_500]
    assert [request.output_tokens for request in part.requests] == expected
    assert open_workload(files.curve(tmp_path), start_s=3_000, requests_per_s=9).requests_per_s == pytest.approx(
        9, rel=0.05
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("chat", 0, 5, 0, 0)], "no lengths are known of the service 'chat'; known: code, conv"),
        ([("code", 0, -5, 0, 0)], "rpm_mean '-5' must be"),
        ([("code", 0, "nan", 0, 0)], "rpm_mean 'nan' is not a number"),
        ([("code", 0, 5, 0, 0)], "a service needs two or more steps"),
        ([("code", 0, 5, 0, 0)] * 2, "a service needs two or more steps at different"),
        ([("code", 0, 0, 0, 0), ("code", 600, 0, 0, 0)], "nobody sent anything"),
    ],
)
def test_wrong_curves_are_refused(tmp_path: Path, rows: list[tuple[object, ...]], message: str) -> None:
    """Every way a curve can be wrong is named."""
    with pytest.raises(InvalidArgumentError, match=message):
        open_workload(files.curve(tmp_path, rows))


def test_curve_steps_out_of_order_are_sorted(tmp_path: Path) -> None:
    """Order does not change what is drawn, and is noted."""
    rows = [("code", 600 * step, 60, 0, 0) for step in range(4)]
    ordered = open_workload(files.curve(tmp_path, rows))
    shuffled = open_workload(files.curve(tmp_path, rows[::-1]))
    assert shuffled.requests == ordered.requests
    assert "steps were not in order: sorted" in shuffled.notes


def test_quantiles_of_kinds_become_requests_with_images(tmp_path: Path) -> None:
    """Both kinds come equally often; images go with long inputs; texts have none."""
    workload = open_workload(files.kind_quantiles(tmp_path), requests_per_s=20)
    assert workload.duration_s == 600
    assert workload.requests_per_s == pytest.approx(20, rel=0.05)
    images, inputs = values(workload, "images", "image"), values(workload, "input_tokens", "image")
    assert (images >= 1).all()
    assert (inputs < 1_000).mean() == pytest.approx(0.5, abs=0.03)
    assert inputs[images > 1].min() > inputs[images == 1].mean()
    assert not values(workload, "images", "text").any()
    assert values(workload, "output_tokens", "text").mean() == pytest.approx(20, rel=0.05)
    assert any("equal rates" in note for note in workload.notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("text", "words", 1, 5)], "unknown field 'words'"),
        ([("text", "input_tokens", 101, 5)], "percentile '101' must be"),
        ([("text", "input_tokens", 1, "inf")], "value 'inf' is not a number"),
        ([("text", "input_tokens", 1, 5)], "'text' has no output_tokens"),
        ([("text", "input_tokens", 1, 5), ("text", "input_tokens", 1, 6), ("text", "output_tokens", 1, 6)], "twice"),
        (
            [("text", "input_tokens", 1, 5), ("text", "input_tokens", 9, 4), ("text", "output_tokens", 1, 6)],
            "must not fall",
        ),
    ],
)
def test_wrong_quantiles_are_refused(tmp_path: Path, rows: list[tuple[object, ...]], message: str) -> None:
    """Every way a table of quantiles can be wrong is named."""
    with pytest.raises(InvalidArgumentError, match=message):
        open_workload(files.kind_quantiles(tmp_path, rows), requests_per_s=1)


def test_a_folder_is_listed_by_what_its_files_hold(tmp_path: Path) -> None:
    """Every kind is recognised by its columns under any name; what is nothing known is left out."""
    (tmp_path / "README.md").write_text("# Traces\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "folder").mkdir()
    files.servegen(tmp_path, [(0, "a", 1, 1, "Gamma", 1, 1)])
    expected = {
        files.request_log(tmp_path, LOG).name: Kind.REQUESTS,
        files.client_log(tmp_path).name: Kind.REQUESTS,
        files.prefix_log(tmp_path, [(0, 600, 5, [1])]).name: Kind.PREFIXED_REQUESTS,
        files.length_pairs(tmp_path).name: Kind.LENGTHS,
        files.curve(tmp_path).name: Kind.RATE_CURVE,
        files.kind_quantiles(tmp_path).name: Kind.QUANTILES,
        files.step_times(tmp_path).name: Kind.STEP_TIMES,
        "servegen_x_rates_week1.csv.gz": Kind.CLIENT_RATES,
        "servegen_x_lengths_week1.csv.gz": Kind.CLIENT_LENGTHS,
    }
    assert {found.path.name: found.kind for found in recognise_folder(tmp_path)} == expected
    with pytest.raises(InvalidArgumentError, match="is no folder"):
        recognise_folder(tmp_path / "README.md")


def test_what_a_folder_has_besides_loads_is_told_with_the_reason(tmp_path: Path) -> None:
    """No file vanishes in silence: unknown, damaged ones and links that lead nowhere are listed with the reason."""
    (tmp_path / "README.md").write_text("# Traces\n")
    (tmp_path / "broken.csv.gz").write_bytes(b"\x1f\x8b\x08\x00damaged")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "folder").mkdir()
    good = files.request_log(tmp_path, LOG)
    assert [found.path for found in recognise_folder(tmp_path)] == [good]
    reasons = {each.path.name: each.reason for each in left_out(tmp_path)}
    assert list(reasons) == ["README.md", "broken.csv.gz", "gone.csv", "picture.png"]
    assert reasons["README.md"] == "no load that is known here"
    assert "damaged or cut off" in reasons["broken.csv.gz"]
    assert "cannot read" in reasons["gone.csv"]
    assert "not text" in reasons["picture.png"]
    with pytest.raises(InvalidArgumentError, match="cannot list the folder"):
        left_out(tmp_path / "absent")


def test_a_quote_that_is_never_closed_is_refused(tmp_path: Path) -> None:
    """A value longer than CSV allows is an error that names the line, in recorded requests and in statistics."""
    endless = '"' + 140_000 * "5"
    for path in (
        files.request_log(tmp_path, [(0, 5, 5), (1, endless, 5)]),
        files.length_pairs(tmp_path, [(endless, 5)]),
    ):
        with pytest.raises(InvalidArgumentError, match=r"line \d+: not CSV .*is a quote left open"):
            open_workload(path, requests_per_s=1)


def test_what_is_no_load_is_not_opened(tmp_path: Path) -> None:
    """Step times, pictures, unknown columns and missing files are refused for what they are."""
    with pytest.raises(InvalidArgumentError, match="step times of engines, which are no load"):
        open_workload(files.step_times(tmp_path))
    with pytest.raises(InvalidArgumentError, match="no load that is known here"):
        recognise(files.write(tmp_path, "other.csv", "a,b", [(1, 2)]))
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        recognise(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1}, {"start_s": -1.0}, {"start_s": float("nan")}, {"duration_s": 0.0}, {"duration_s": float("inf")},
        {"rate_scale": 0.0}, {"rate_scale": -1.0}, {"requests_per_s": 0.0}, {"requests_per_s": float("nan")},
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    """Each argument is named when it is out of range, before a file is touched."""
    with pytest.raises(InvalidArgumentError) as caught:
        open_workload(files.request_log(tmp_path, LOG), **wrong)  # type: ignore[arg-type]
    assert caught.value.field == next(iter(wrong))
