"""The fit of the step-time constants: what ships is what it gives, and made-up truths come back."""

from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from engines.simulated.fit import (
    DECODE_ERROR_MAX,
    PREFILL_ERROR_MAX,
    HardwareFit,
    errors_of,
    fit_hardware,
    main,
    relative_error,
)
from engines.simulated.hardware import HARDWARE, PUBLISHED, Hardware
from engines.simulated.kernel_points import SHIPPED_POINTS, Component, KernelPoint, read_kernel_points
from fairlead.errors import InvalidArgumentError

CONSTANTS = ("w0", "w1", "g0", "g1", "a0", "ad", "ap", "h", "kv_capacity_tokens", "weights_gb")
SHIPPED = read_kernel_points()
LINEAR = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
PROMPTS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
DECODES = tuple(itertools.product((1, 4, 16, 64, 128, 256), (128, 1024, 4096, 16384)))


def grid() -> Iterator[KernelPoint]:
    """Places at which a configuration is measured."""
    yield from (KernelPoint(Component.LINEAR_LAYERS, tokens, 0, 1.0) for tokens in LINEAR)
    for kind in (Component.PREFILL_ATTENTION, Component.PREFILL_STEP):
        yield from (KernelPoint(kind, 1, length, 1.0) for length in PROMPTS)
    for kind in (Component.DECODE_ATTENTION, Component.DECODE_STEP):
        yield from (KernelPoint(kind, batch, length, 1.0) for batch, length in DECODES)


def measured(truth: Hardware, point: KernelPoint, factor: float = 1.0) -> KernelPoint:
    """The point as hardware of these constants would give it, times a factor."""
    if point.component is Component.LINEAR_LAYERS:
        ms = max(truth.w0 + truth.w1 * point.batch, truth.g0 + truth.g1 * point.batch)
    else:
        whole = truth if point.linear_tokens else replace(truth, w0=0.0, w1=0.0, g0=0.0, g1=0.0)
        ms = 1.0 + relative_error(whole, point)  # of a point of 1 ms
    return replace(point, ms=max(ms, 1e-3) * factor)


def noisy(truth: Hardware, noise: float, seed: int) -> list[KernelPoint]:
    draws = np.random.default_rng(seed)
    return [measured(truth, point, float(np.exp(noise * draws.standard_normal()))) for point in grid()]


@pytest.fixture(scope="module")
def fits() -> dict[str, HardwareFit]:
    return {config: fit_hardware(config, points) for config, points in SHIPPED.items()}


def test_the_shipped_constants_are_what_the_fit_gives(fits: dict[str, HardwareFit]) -> None:
    """No constant of a measured configuration was typed by hand: each is the fit's."""
    assert {fit.hardware.label for fit in fits.values()} == {"h100", "a100", "h100-tp4"}
    for fit in fits.values():
        shipped = HARDWARE[fit.hardware.label]
        assert shipped.model == fit.hardware.model
        for name in CONSTANTS:
            assert getattr(shipped, name) == pytest.approx(getattr(fit.hardware, name), rel=5e-3), (shipped.label, name)


def test_the_bars_hold_on_the_shipped_measurements(fits: dict[str, HardwareFit]) -> None:
    """Mean absolute relative error is at most 4 % over decode and 5 % over prefill steps."""
    for config, fit in fits.items():
        decode_error, prefill_error = errors_of(HARDWARE[fit.hardware.label], SHIPPED[config])
        assert decode_error <= DECODE_ERROR_MAX
        assert prefill_error <= PREFILL_ERROR_MAX
        assert (decode_error, prefill_error) == pytest.approx((fit.decode_error, fit.prefill_error), rel=1e-2)
        assert fit.acceptable
        assert abs(fit.worst_error) >= decode_error


def test_the_fit_beats_what_was_published(fits: dict[str, HardwareFit]) -> None:
    """The published constants miss a bar on these measurements, so the fit is not one of them."""
    for config, fit in fits.items():
        decode_error, prefill_error = errors_of(PUBLISHED[fit.hardware.label], SHIPPED[config])
        assert fit.decode_error < decode_error
        assert fit.prefill_error < prefill_error


def test_what_was_not_measured_keeps_its_published_constants() -> None:
    """a100-tp4 and h100-tp8 have no measurements here and stand as published."""
    for label in ("a100-tp4", "h100-tp8"):
        assert HARDWARE[label] is PUBLISHED[label]


@pytest.mark.parametrize("label", sorted(PUBLISHED))
@pytest.mark.parametrize("seed", [1, 2])
def test_a_known_truth_comes_back_through_noise(label: str, seed: int) -> None:
    """With 2 % of noise both errors stay at the noise, and what the constants say of unseen steps is within 3 %."""
    truth = replace(PUBLISHED[label], h=0.0)
    fit = fit_hardware("h100_llama3.1-70b_bf16_tp8", noisy(truth, 0.02, seed))
    assert fit.decode_error < 0.025
    assert fit.prefill_error < 0.025
    for prefill, sequences, context in ((0, 48, 60_000), (0, 200, 400_000), (1_800, 0, 0), (6_000, 0, 0)):
        said, true = (
            hardware.step_s(
                prefill_tokens=prefill, prefill_squares=prefill**2, sequences=sequences, context_tokens=context
            )
            for hardware in (replace(fit.hardware, h=0.0), truth)
        )
        assert said == pytest.approx(true, rel=0.03)


@pytest.mark.parametrize("label", sorted(PUBLISHED))
def test_an_exact_truth_comes_back_constant_by_constant(label: str) -> None:
    """Without noise the two lines and the attention terms are found themselves, not just their sum."""
    truth = PUBLISHED[label]
    found = fit_hardware("x", [measured(truth, point) for point in grid()]).hardware
    for name in ("w0", "w1", "g0", "g1", "a0", "ad", "ap"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.01, abs=2e-3 * truth.w0), name


@pytest.mark.parametrize("config", sorted(SHIPPED))
@pytest.mark.parametrize("label", ["a100-tp4", "h100-tp8"])
def test_kinks_of_real_kernels_on_another_engine_meet_the_bars(config: str, label: str) -> None:
    """The jumps of each measured configuration, laid over the constants of another one, still meet both bars."""
    ours = HARDWARE[fit_hardware(config, SHIPPED[config]).hardware.label]
    moved = [
        measured(PUBLISHED[label], point, point.ms / measured(ours, point).ms)
        for point in SHIPPED[config]
        if point.linear_tokens
    ]
    assert fit_hardware("h100_llama3.1-70b_bf16_tp8", moved).acceptable


@pytest.mark.parametrize("config", sorted(SHIPPED))
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_third_of_the_points_is_enough(config: str, offset: int) -> None:
    """Constants fitted to every third point meet both bars on the points they never saw."""
    points = SHIPPED[config]
    seen = points[offset::3]
    unseen = [point for index, point in enumerate(points) if index % 3 != offset]
    decode_error, prefill_error = errors_of(fit_hardware(config, seen).hardware, unseen)
    assert decode_error <= DECODE_ERROR_MAX
    assert prefill_error <= PREFILL_ERROR_MAX


@pytest.mark.parametrize("tokens_max", [96, 1])
def test_measurements_on_one_line_only_are_fitted_with_it(tokens_max: int) -> None:
    """Where the steps never get large enough to compute-bound, both lines are the same one, and nothing explodes."""
    points = [measured(HARDWARE["h100"], point) for point in grid() if point.linear_tokens <= max(tokens_max, 16)]
    fit = fit_hardware("x", points)
    assert fit.acceptable
    assert fit.hardware.w0 >= 0
    assert all(np.isfinite(getattr(fit.hardware, name)) for name in CONSTANTS)


def test_no_constant_but_g0_is_below_zero() -> None:
    """Attention that costs nothing comes out as nothing, even when noise says less than that."""
    free = replace(HARDWARE["h100"], a0=0.0, ad=0.0, ap=0.0)
    points = [point for point in noisy(free, 0.02, 3) if point.linear_tokens]
    found = fit_hardware("x", points).hardware
    assert min(getattr(found, name) for name in ("w0", "w1", "g1", "a0", "ad", "ap")) >= 0
    assert found.g1 >= found.w1


@pytest.mark.parametrize("missing", [Component.DECODE_STEP, Component.PREFILL_STEP])
def test_steps_of_both_kinds_are_needed(missing: Component) -> None:
    """Without any step of one kind there is nothing to judge the fit by: it says which."""
    points = [point for point in grid() if point.component is not missing]
    with pytest.raises(InvalidArgumentError, match=f"x has no {missing} rows"):
        fit_hardware("x", points)


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_point_that_cannot_be_is_refused(ms: float) -> None:
    """Points that did not come from a file are checked too."""
    with pytest.raises(InvalidArgumentError, match="out of range"):
        fit_hardware("x", [replace(next(grid()), ms=ms), *grid()])


def printed(path: Path) -> tuple[int, str]:
    out = io.StringIO()
    return main(path, Console(file=out, width=220)), out.getvalue()


def test_the_command_prints_constants_against_the_published_ones() -> None:
    """`python -m engines.simulated.fit` shows every configuration, its errors and the published constants."""
    code, text = printed(SHIPPED_POINTS)
    assert code == 0
    for needed in ("h100_llama3.1-8b_bf16_tp1", "(h100-tp4)", "published", "6.308", "5.82", "worst decode_step"):
        assert needed in text


def test_the_command_says_when_a_bar_is_missed(tmp_path: Path) -> None:
    """Times that follow no formula end in exit code 1, a file that is none in 2."""
    lines = ["config,component,batch_or_tokens,seq_or_context_len,ms"]
    draws = np.random.default_rng(5)
    for point in grid():
        wild = measured(HARDWARE["h100"], point, float(draws.choice([0.3, 3.0])))
        lines.append(f"odd [name],{wild.component},{wild.batch},{wild.length},{wild.ms}")
    path = tmp_path / "wild.csv"
    path.write_text("\n".join(lines))
    code, text = printed(path)
    assert code == 1
    assert "odd [name] misses a bar" in text
    assert "is not of the form" in text
    path.write_bytes(gzip.compress(path.read_bytes())[:-40])
    assert printed(path)[0] == 2
