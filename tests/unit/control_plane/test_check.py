"""What an administrator may store: the table of bad input."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane.core import check
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import InvalidArgumentError
from model_units.profiles import built_in_profiles

GOOD_MODEL: dict[str, Any] = {
    "model_id": "tiny-1.0",
    "engine": {"engine": "simulated", "hardware": "h100"},
    "context_tokens": 8192,
    "output_tokens_max": 1024,
    "replicas_max": 4,
}


def model(**changes: Any) -> admin_pb2.Model:
    fields = GOOD_MODEL | {name: value for name, value in changes.items() if name != "engine"}
    fields["engine"] = admin_pb2.EngineSpec(**(GOOD_MODEL["engine"] | changes.get("engine", {})))
    return admin_pb2.Model(**fields)


def test_a_good_model_is_completed() -> None:
    """Proves the defaults that are filled in, and those that stay 0 because 0 has a meaning."""
    stored = check.model(model(), built_in_profiles())
    assert (stored.output_tokens_default, stored.bytes_per_token, stored.target_utilization) == (1024, 4.0, 0.0)
    for headroom in admin_pb2.Headroom.values():
        assert check.model(model(headroom=headroom), built_in_profiles()).headroom == headroom
    for policy in admin_pb2.RoutingPolicy.values():
        assert check.model(model(routing_policy=policy), built_in_profiles()).routing_policy == policy


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_id": ""}, "model.model_id"),
        ({"model_id": "Upper"}, "model.model_id"),
        ({"model_id": "a/b"}, "model.model_id"),
        ({"model_id": "-a"}, "model.model_id"),
        ({"model_id": "a" * 128}, "model.model_id"),
        ({"model_id": "tiny\n"}, "model.model_id"),
        ({"display_name": "x" * 201}, "model.display_name"),
        ({"display_name": "a\x1b[2J"}, "model.display_name"),
        ({"display_name": "a\u202eb"}, "model.display_name"),
        ({"engine": {"engine": "vllm"}}, "model.engine.engine"),
        ({"engine": {"engine": ""}}, "model.engine.engine"),
        ({"engine": {"hardware": ""}}, "model.engine.hardware"),
        ({"engine": {"hardware": "abacus"}}, "model.engine.hardware"),
        ({"engine": {"dialect": "klingon"}}, "model.engine.dialect"),
        ({"engine": {"endpoint": "nowhere"}}, "model.engine.endpoint"),
        ({"engine": {"endpoint": "host:99999"}}, "model.engine.endpoint"),
        ({"engine": {"sequences_max": -1}}, "model.engine.sequences_max"),
        ({"profile_id": "nothing/at-all/1"}, "model.profile_id"),
        ({"context_tokens": 0}, "model.context_tokens"),
        ({"context_tokens": -5}, "model.context_tokens"),
        ({"context_tokens": 10_000_001}, "model.context_tokens"),
        ({"output_tokens_max": 0}, "model.output_tokens_max"),
        ({"output_tokens_max": 8193}, "model.output_tokens_max"),
        ({"output_tokens_default": 1025}, "model.output_tokens_default"),
        ({"bytes_per_token": 0.01}, "model.bytes_per_token"),
        ({"bytes_per_token": float("nan")}, "model.bytes_per_token"),
        ({"bytes_per_token": float("inf")}, "model.bytes_per_token"),
        ({"target_utilization": 1.5}, "model.target_utilization"),
        ({"target_utilization": -0.5}, "model.target_utilization"),
        ({"target_utilization": float("nan")}, "model.target_utilization"),
        ({"replicas_min": -1}, "model.replicas_min"),
        ({"replicas_min": 5}, "model.replicas_max"),
        ({"replicas_max": 10_001}, "model.replicas_max"),
        ({"headroom": 5}, "model.headroom"),
        ({"headroom": -1}, "model.headroom"),
        ({"routing_policy": 8}, "model.routing_policy"),
        ({"routing_policy": -1}, "model.routing_policy"),
    ],
)
def test_a_bad_model_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    """Proves that every field of a model has a range, and that the error names the field."""
    with pytest.raises(InvalidArgumentError) as refused:
        check.model(model(**changes), built_in_profiles())
    assert refused.value.field == field
    assert field in refused.value.message


@pytest.mark.parametrize(
    ("tenant_id", "name", "field"),
    [
        ("", "x", "tenant.tenant_id"),
        ("1a", "x", "tenant.tenant_id"),
        ("Acme", "x", "tenant.tenant_id"),
        ("a_b", "x", "tenant.tenant_id"),
        ("a" * 64, "x", "tenant.tenant_id"),
        ("é", "x", "tenant.tenant_id"),
        ("acme", "x" * 201, "tenant.display_name"),
        ("acme", "a\tb", "tenant.display_name"),
    ],
)
def test_a_bad_tenant_is_refused_by_name(tenant_id: str, name: str, field: str) -> None:
    """Proves the form of tenant ids and names."""
    with pytest.raises(InvalidArgumentError) as refused:
        check.tenant(admin_pb2.Tenant(tenant_id=tenant_id, display_name=name))
    assert refused.value.field == field


RESERVED, CEILING = "reserved_milli_mu_per_minute", "burst_ceiling_milli_mu_per_minute"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tenant_id": "A"}, "tenant_id"),
        ({"model_id": "/"}, "model_id"),
        ({RESERVED: -1}, RESERVED),
        ({RESERVED: 0}, RESERVED),
        ({RESERVED: 10**12 + 1}, RESERVED),
        ({RESERVED: 2**63 - 1}, RESERVED),
        ({CEILING: -1}, CEILING),
        ({CEILING: 99}, CEILING),
        ({CEILING: 2**63 - 1}, CEILING),
        ({"tier": -1}, "tier"),
        ({"tier": 10}, "tier"),
        ({"weight": -1}, "weight"),
        ({"weight": 1001}, "weight"),
    ],
)
def test_a_bad_reservation_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    """Proves that zero, negative and overflowing rates, tiers and weights are refused by name."""
    good: dict[str, Any] = {"tenant_id": "acme", "model_id": "tiny", RESERVED: 100}
    with pytest.raises(InvalidArgumentError) as refused:
        check.reservation(admin_pb2.Reservation(**(good | changes)))
    assert refused.value.field == "reservation." + field


def test_ceilings_of_reservations() -> None:
    """Proves that no ceiling means no burst, and that best effort is a reservation of nothing with a ceiling."""
    plain = check.reservation(admin_pb2.Reservation(tenant_id="a", model_id="m", reserved_milli_mu_per_minute=100))
    assert plain.burst_ceiling_milli_mu_per_minute == 100
    effort = check.reservation(admin_pb2.Reservation(tenant_id="a", model_id="m", burst_ceiling_milli_mu_per_minute=50))
    assert (effort.reserved_milli_mu_per_minute, effort.burst_ceiling_milli_mu_per_minute) == (0, 50)


def test_request_ids_are_bounded() -> None:
    """Proves that a request id cannot fill the memory or the log."""
    assert check.request_id("") == ""
    for bad in ("x" * 129, "a\nb"):
        with pytest.raises(InvalidArgumentError):
            check.request_id(bad)
