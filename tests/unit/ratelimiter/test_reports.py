"""Reports as they come over the wire."""

from __future__ import annotations

import pytest

from fairlead.errors import InvalidArgumentError
from fairlead.quota.v1 import quota_pb2
from ratelimiter.translate import AMOUNT_MAX, report_from


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"router_id": ""}, "router_id"),
        ({"router_id": "a/b"}, "router_id"),
        ({"incarnation_id": ""}, "incarnation_id"),
        ({"report_number": 0}, "report_number"),
        (
            {"applied": [quota_pb2.TableVersion(epoch=1, table_number=7)], "wants": [quota_pb2.Want(model_id="m")]},
            "wants[0]",
        ),
        ({"applied": [quota_pb2.TableVersion(shard=64)]}, "applied"),
        ({"applied": [quota_pb2.TableVersion(shard=-1)]}, "applied"),
        ({"wants": [quota_pb2.Want(model_id="m" * 256, tenant_id="t")]}, "wants[0]"),
        (
            {"wants": [quota_pb2.Want(model_id="m", tenant_id="t", wants_milli_mu_per_minute=-1)]},
            "wants[0]",
        ),
    ],
)
def test_bad_reports_are_refused_by_name(request_fields: dict[str, object], field: str) -> None:
    """Proves that a malformed report names the field to blame."""
    request = quota_pb2.ReportWantsRequest(router_id="r", incarnation_id="i", report_number=1)
    for name, value in request_fields.items():
        if isinstance(value, list):
            getattr(request, name).extend(value)
        else:
            setattr(request, name, value)
    with pytest.raises(InvalidArgumentError) as refused:
        report_from(request)
    assert refused.value.field == field


def test_absurd_amounts_count_as_the_most_there_is() -> None:
    """Proves that one overflowing want neither ends the limiter nor costs the router's other tenants their leases."""
    request = quota_pb2.ReportWantsRequest(router_id="r", incarnation_id="i", report_number=1)
    request.wants.add(model_id="m", tenant_id="t", wants_milli_mu_per_minute=2**63 - 1, held_milli_mu=2**63 - 1)
    (want,) = report_from(request).wants.values()
    assert (want.wants, want.held) == (AMOUNT_MAX, AMOUNT_MAX)
