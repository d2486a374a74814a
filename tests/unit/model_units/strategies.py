"""Any valid cost profile, for round trips and properties of the price."""

from __future__ import annotations

from hypothesis import strategies as st

from model_units.cost import COEFFICIENTS, CostForm, CostProfile, Evidence

_words = st.text("abcz019.-_", min_size=1, max_size=12)
_lines = st.text(st.characters(categories=("L", "N", "P", "Zs"), exclude_characters="\u00a0\u2028"), max_size=30)
_printable = _lines.filter(lambda text: text.isprintable() and text != "")
_errors = st.floats(0.0, 10.0)
_linear = st.floats(1e-12, 10.0)
_quadratic = st.floats(0.0, 1e-2)


@st.composite
def _curves(draw: st.DrawFn) -> tuple[tuple[float, float], ...]:
    intensities = sorted(draw(st.sets(st.floats(0.0, 1e4), max_size=6)))
    tpots = sorted(draw(st.lists(st.floats(0.1, 1e4), min_size=len(intensities), max_size=len(intensities))))
    return tuple(zip(intensities, tpots, strict=True))


_intervals = st.tuples(_quadratic, _quadratic).map(lambda pair: (min(pair), max(pair)))
_evidence = st.builds(
    Evidence,
    intervals=st.dictionaries(st.sampled_from(COEFFICIENTS), _intervals),
    hold_out_error=_errors,
    class_errors=st.dictionaries(_printable, st.floats(-10.0, 10.0), max_size=3),
    points=st.integers(0, 2**31 - 1),
    engine_s=st.floats(0.0, 1e6),
    latency_curve=_curves(),
    latency_spread=_errors,
)
_times = st.datetimes().map(lambda when: when.replace(microsecond=0).isoformat() + "Z")


@st.composite
def profiles(draw: st.DrawFn, *, plausible: bool = False) -> CostProfile:
    """Any profile that may exist; a plausible one has coefficients of a size that a file may state."""
    model, hardware = draw(_words), draw(_words)
    version = draw(st.integers(1, 2**31 - 1))
    form = draw(st.sampled_from(CostForm))
    tpot_ms = draw(st.floats(1.0, 10_000.0) if plausible else st.floats(1e-3, 60_000.0))
    a = draw(st.floats(1e-12, min(0.05, 2e-4 * tpot_ms)) if plausible else _linear)
    b = draw(st.floats(1e-12, 9e-4 * tpot_ms) if plausible else _linear)
    d = draw(st.floats(0.0, 9e-3 * a) if plausible else _quadratic)
    return CostProfile(
        profile_id=f"{model}/{hardware}/{version}",
        model=model,
        hardware=hardware,
        engine=draw(_printable),
        tpot_objective_ms=tpot_ms,
        a=a,
        b=b,
        d=0.0 if form is CostForm.PRODUCT else d,
        g=draw(st.floats(0.0, min(1e-2, 0.09 * b)) if plausible else _quadratic),
        provenance=draw(_printable),
        version=version,
        form=form,
        ttft_objective_ms=draw(st.floats(0.0, 3_600_000.0)),
        image_s=draw(st.floats(0.0, 10.0)),
        image_cpu_s=draw(st.floats(0.0, 100.0)),
        create_time=draw(st.just("") | _times),
        evidence=draw(st.none() | _evidence),
    )
