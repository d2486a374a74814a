"""The arithmetic of bench-relay: what a run and its rounds come to, which bars hold, what is said where C lacks."""

from __future__ import annotations

import json
import os
from math import isnan, nan
from pathlib import Path

import pytest

from benchmarks.relay import bars, build, messages, proxy_configs, rivals
from benchmarks.relay.__main__ import PHASES, wanted_phases
from benchmarks.relay.machine import REFERENCE_STEP_US, memory_kb, step_us, tree
from benchmarks.relay.rounds import DIRECT, OURS, Results, runs_on
from benchmarks.relay.scenarios import SCENARIOS, Sample, Scenario, sample
from benchmarks.relay.soak import Seen, next_rate
from benchmarks.report import Report
from fairlead.inference.v1 import inference_pb2 as pb


def found(**changes: object) -> dict[str, object]:
    """What the load generator prints of 100 answers of 256 tokens in two seconds, with half a second of CPU time."""
    told: dict[str, object] = {
        "done": 100,
        "messages": 25_900,
        "all_done": 100,
        "all_errors": 0,
        "all_messages": 25_900,
        "unfinished": 0,
        "live_max": 200,
        "window_s": 2.0,
        "cpu_s": 0.5,
        "ttft_ms_p50": 10.5,
        "ttft_ms_p99": 12.0,
        "latency_ms_p50": 2_570.0,
        "error": "",
    }
    return told | changes


def run(raw_us: float = 10.0, step_us: float = REFERENCE_STEP_US, **changes: object) -> Sample:
    """One run."""
    values: dict[str, object] = {
        "raw_us": raw_us,
        "step_us": step_us,
        "stolen": 0.0,
        "busy": 0.5,
        "done": 10,
        "errors": 0,
        "unfinished": 0,
        "tokens_per_s": 1.0,
        "ttft_ms_p50": 10.0,
        "ttft_ms_p99": 11.0,
        "latency_ms_p50": 1.0,
        "memory_kb": 50_000.0,
        "live": 1,
        "error": "",
    }
    return Sample(**(values | changes))  # type: ignore[arg-type]


def scenario(name: str) -> Scenario:
    """By its name."""
    return next(each for each in SCENARIOS if each.name == name)


def test_tokens_are_those_asked_for_whatever_ends_an_answer() -> None:
    """259 events of an answer of 256 tokens are 256 tokens, so that nobody's cost per token gains by what he adds."""
    seen = sample(scenario("http_p20k"), found(), step=2 * REFERENCE_STEP_US, stolen=0.0, kb=1.0)
    assert seen.raw_us == pytest.approx(0.5e6 / 25_600)
    assert seen.tokens_per_s == pytest.approx(12_800)
    assert seen.scaled() == pytest.approx(seen.raw_us / 2)
    assert seen.busy == 0.25


def test_requests_are_what_short_streams_are_told_by() -> None:
    """CPU time of a stream of 32 tokens is per request."""
    assert sample(
        scenario("http_s32"), found(), step=2 * REFERENCE_STEP_US, stolen=0.0, kb=1.0
    ).raw_us == pytest.approx(5_000)


def test_a_run_that_answered_nothing_costs_no_number() -> None:
    """Neither 0 nor infinity: not a number, which holds no bar and enters no median."""
    nothing = sample(
        scenario("grpc_s32"), found(done=0, messages=0, all_done=0), step=2 * REFERENCE_STEP_US, stolen=0.0, kb=1.0
    )
    assert isnan(nothing.raw_us)
    results = Results()
    results.add("grpc_s32", OURS, nothing)
    results.add("grpc_s32", OURS, run(7.0))
    assert results.median("grpc_s32", OURS, Sample.raw) == 7.0


def test_ratios_are_of_the_same_round_on_the_same_core() -> None:
    """A core that was half as fast in one run changes no ratio; a failed run leaves its round out."""
    results = Results()
    for ours, theirs in ((run(10.0), run(20.0)), (run(20.0, 2 * REFERENCE_STEP_US), run(20.0)), (run(99.0), None)):
        results.add("grpc_unary", OURS, ours)
        results.add("grpc_unary", "envoy", theirs)
    assert results.ratio("grpc_unary", "envoy") == pytest.approx(0.5)
    assert isnan(results.ratio("grpc_unary", "nginx"))


def test_a_bar_that_was_not_measured_is_missed_and_a_rival_left_out_is_left_out() -> None:
    """Silence is not success; but who cannot be installed is nobody's failure."""
    report = Report("relay")
    bars.report(Results(), ["unary", "s32"], ["envoy"], report)
    assert not report.bars["grpc_unary_us"].holds(report.metrics["grpc_unary_us"])
    assert "grpc_unary_over_envoy_ratio" not in report.metrics
    assert isnan(report.metrics["grpc_unary_over_grpc_aio_ratio"])
    assert "grpc_p20k_us" not in report.metrics


def test_every_row_of_the_bars_is_judged() -> None:
    """A full run without a failure holds every bar where everything costs nothing, and has one for each promise."""
    results = Results()
    results.idle_kb = 1.0
    for each in SCENARIOS:
        for target in (OURS, DIRECT, *(rival.name for rival in rivals.RIVALS)):
            results.add(each.name, target, run(1e-3 if target == OURS else 1.0))
    report = Report("relay")
    bars.report(results, PHASES, (), report)
    assert all(bar.holds(report.metrics[name]) for name, bar in report.bars.items())
    assert len(report.bars) == 10 + 14 + 4 + 1 + 1 + 1 + 1  # CPU, ratios, TTFT, memory twice, tickets a second, errors


def test_time_to_first_token_is_what_the_router_adds() -> None:
    """Median over median of the mock engine asked directly, on the reference core."""
    results = Results()
    results.add("grpc_t50", OURS, run(step_us=2 * REFERENCE_STEP_US, ttft_ms_p50=11.0))
    results.add("grpc_t50", DIRECT, run(ttft_ms_p50=10.0))
    report = Report("relay")
    bars.report(results, ["t50"], (), report)
    assert report.metrics["grpc_t50_added_ttft_p50_raw_ms"] == pytest.approx(1.0)
    assert report.metrics["grpc_t50_added_ttft_p50_ms"] == pytest.approx(0.5)


def test_memory_of_a_live_stream_is_what_more_streams_cost() -> None:
    """4,990 streams more in 9,980 kB more are 2 kB each."""
    results = Results()
    results.add("live_10", OURS, run(memory_kb=50_000.0))
    results.add("live_5000", OURS, run(memory_kb=59_980.0))
    report = Report("relay")
    bars.report(results, ["live"], (), report)
    assert report.metrics["live_stream_kb"] == pytest.approx(2.0)


def test_memory_grows_from_the_second_fifth_to_the_last() -> None:
    """What is filled once at the beginning is no growth; ten segments have fifths of two, four have none."""
    assert Seen(memory_kb=[10, 50, 100, 100, 100, 100, 100, 100, 104, 104]).growth_percent() == pytest.approx(4.0)
    assert isnan(Seen(memory_kb=[1.0, 2.0, 3.0, 4.0]).growth_percent())


def test_the_soak_never_loads_more_onto_a_core_that_others_have() -> None:
    """It grows by no more than twice, near its share by a tenth, shrinks by no more than half, and where tokens did not
    come it never grows."""
    assert next_rate(1_000.0, wanted=5.0, carried=0.95) == 2_000
    assert next_rate(1_000.0, wanted=1.9, carried=0.95) == pytest.approx(1_100)
    assert next_rate(1_000.0, wanted=1.05, carried=0.95) == pytest.approx(1_050)
    assert next_rate(1_000.0, wanted=0.1, carried=0.95) == 500
    assert next_rate(1_000.0, wanted=5.0, carried=0.8) == 800


def test_bodies_ask_the_mock_for_the_tokens_of_the_scenario() -> None:
    """The mark that the mock reads stands in the clear in every body, whatever carries it."""
    for each in SCENARIOS:
        mark = f"#N={each.tokens},I={each.interval_us}#".encode()
        assert mark in each.body(), each.name
    request = pb.GenerateRequest.FromString(scenario("grpc_p20k").body()[5:])
    assert request.sampling.max_tokens == 256


def test_templates_are_what_engines_send(tmp_path: Path) -> None:
    """A piece is the same bytes as the public message; an answer's last events say how it ended and that it did."""
    messages.write_templates(tmp_path)
    piece = pb.StreamGenerateResponse.FromString((tmp_path / "piece").read_bytes())
    assert (piece.text, piece.output_tokens) == (" token", 1)
    events = (tmp_path / "sse_last").read_bytes().split(b"\n\n")
    assert json.loads(events[0].removeprefix(b"data: "))["choices"][0]["finish_reason"] == "length"
    assert b'"completion_tokens":%TOKENS%' in events[1]
    assert events[2] == b"data: [DONE]"


def test_proxies_are_told_of_every_replica(tmp_path: Path) -> None:
    """Envoy and nginx spread their load as our router does."""
    upstreams = ["127.0.0.1:9001", "127.0.0.1:9002"]
    envoy = json.loads(proxy_configs.envoy(1, 2, upstreams))["static_resources"]
    for cluster in envoy["clusters"]:
        endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        assert [each["endpoint"]["address"]["socket_address"]["port_value"] for each in endpoints] == [9001, 9002]
    assert proxy_configs.nginx(tmp_path, 1, 2, upstreams).count("server 127.0.0.1:900") == 4


def test_phases_and_rivals_are_named_with_commas_or_spaces() -> None:
    """Nothing named is everything; an unknown name is refused."""
    assert wanted_phases("memory,unary") == ["unary", "memory"]
    assert wanted_phases("") == list(PHASES)
    assert [each.name for each in rivals.wanted("nginx envoy")] == ["envoy", "nginx"]
    assert rivals.wanted("none") == []
    with pytest.raises(SystemExit, match="haproxy: unknown"):
        rivals.wanted("haproxy")
    with pytest.raises(SystemExit, match="p30k: unknown"):
        wanted_phases("p30k")


def test_a_rival_is_started_for_what_it_can_carry() -> None:
    """grpc.aio speaks no HTTP, and LiteLLM is not asked for 20,000 tokens a second."""
    names = {each.name: [one.name for one in SCENARIOS if runs_on(each, one)] for each in rivals.RIVALS}
    assert names["grpc_aio"] == ["grpc_unary", "grpc_s32", "grpc_p2500"]
    assert names["litellm"] == ["http_s32_by_4"]
    assert {"grpc_p50k", "http_p20k"} <= set(names["nginx"])


def test_without_a_compiler_it_names_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever lacks gcc, or the headers of nghttp2, is told what to install."""
    monkeypatch.setattr(build, "FOLDER", tmp_path / "built")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"no gcc[\s\S]*apt-get install gcc libc6-dev\n"):
        build.programs()
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    with pytest.raises(build.BuildError, match=r"no nghttp2[\s\S]*apt-get install libnghttp2-dev\n"):
        build.programs()


def test_a_process_is_in_its_own_tree_and_has_memory() -> None:
    """What is read of /proc is about this process."""
    assert tree(os.getpid())[0] == os.getpid()
    assert memory_kb([os.getpid()]) > 1_000
    assert not memory_kb([2**22 + 1])


def test_a_step_of_the_reference_loop_is_some_nanoseconds() -> None:
    """The core is left as it was found."""
    before = os.sched_getaffinity(0)
    assert 0.005 < step_us() < 5
    assert os.sched_getaffinity(0) == before


def test_failed_runs_are_counted() -> None:
    """A run that did not come about and one with an error are errors of ours; a rival's are not."""
    results = Results()
    for target in (OURS, "envoy"):
        for each in (None, run(errors=1), run(unfinished=1), run(), run(nan)):
            results.add("grpc_unary", target, each)
    report = Report("relay")
    bars.report(results, ["unary"], (), report)
    assert report.metrics["runs_with_errors"] == 3
