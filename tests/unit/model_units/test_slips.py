"""Numbers in the wrong unit are refused, true ones of any replica are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import InvalidArgumentError
from model_units.cost import COEFFICIENTS, CostProfile
from model_units.profiles import built_in_profiles, parse_profile, render_profile
from model_units.slips import check_units

SHIPPED = [built_in_profiles().get(profile_id) for profile_id in built_in_profiles().ids]


def of_cpu(a: float, b: float, d: float, g: float, tpot_ms: float) -> CostProfile:
    """A profile of a CPU."""
    return replace(SHIPPED[0], a=a, b=b, d=d, g=g, tpot_objective_ms=tpot_ms)


@pytest.mark.parametrize("profile", SHIPPED, ids=lambda profile: profile.profile_id)
def test_shipped_profiles_pass(profile: CostProfile) -> None:
    """Proves that nothing that ships is taken for a slip."""
    check_units(profile)


@pytest.mark.parametrize(
    "profile",
    [
        of_cpu(3e-5, 5e-4, 1e-8, 1.4e-7, 50.0),
        of_cpu(0.04, 1.0, 1e-6, 1e-4, 10_000.0),
        of_cpu(0.02, 0.2, 1e-6, 1e-5, 200.0),
        of_cpu(1e-6, 2e-6, 0.0, 0.0, 1.0),
    ],
)
def test_slow_and_fast_replicas_pass(profile: CostProfile) -> None:
    """Proves that a CPU which decodes one request at a time is no slip, and neither is a very fast replica."""
    check_units(profile)


@pytest.mark.parametrize("profile", SHIPPED, ids=lambda profile: profile.profile_id)
@pytest.mark.parametrize("factor", [1e3, 1e3 / 0.6], ids=["milliseconds", "mMU"])
def test_coefficients_in_another_unit_are_refused(profile: CostProfile, factor: float) -> None:
    """Proves that milliseconds and mMU where seconds belong are named, whatever the replica."""
    wrong = replace(profile, **{name: factor * getattr(profile, name) for name in COEFFICIENTS})
    with pytest.raises(InvalidArgumentError, match="coefficients are in replica-seconds"):
        parse_profile(render_profile(wrong))


@pytest.mark.parametrize("name", ["d", "g"])
def test_one_coefficient_in_milliseconds_is_refused(name: str) -> None:
    """Proves that a small coefficient in another unit than the rest is named, for the profile of an H100."""
    profile = built_in_profiles().get("llama-3.1-8b/h100/2")
    with pytest.raises(InvalidArgumentError, match=f"profile.{name} .* is too much beside"):
        parse_profile(render_profile(replace(profile, **{name: 1e3 * getattr(profile, name)})))


@pytest.mark.parametrize(("tpot_ms", "named"), [(0.05, "looks like seconds"), (50_000.0, "looks like microseconds")])
def test_an_objective_in_another_unit_is_refused(tpot_ms: float, named: str) -> None:
    """Proves that an objective in seconds or microseconds is named with its likely unit."""
    with pytest.raises(InvalidArgumentError, match=f"tpot_objective_ms .*{named}: it is in milliseconds") as refused:
        parse_profile(render_profile(replace(SHIPPED[0], tpot_objective_ms=tpot_ms)))
    assert refused.value.field == "profile.tpot_objective_ms"


@given(st.sampled_from(SHIPPED), st.floats(0.2, 20.0))
def test_a_replica_a_few_times_slower_or_faster_passes(profile: CostProfile, factor: float) -> None:
    """Proves that the bounds do not come near to what replicas are: twenty times slower at the same objective passes,
    as it stands and in a file."""
    other = replace(profile, **{name: factor * getattr(profile, name) for name in COEFFICIENTS})
    assert parse_profile(render_profile(other)) == other
