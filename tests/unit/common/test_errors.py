"""The error tree: what a service raises is what a client catches."""

from __future__ import annotations

import pytest
from google.rpc import status_pb2

from fairlead.errors import (
    FairleadError,
    InternalError,
    InvalidArgumentError,
    NotLeaderError,
    QuotaExceededError,
    Reason,
    UnavailableError,
    _leaves,
    from_status,
    to_status,
)


@pytest.mark.parametrize("kind", _leaves(FairleadError))
def test_every_error_survives_the_wire(kind: type[FairleadError]) -> None:
    """Class, reason, message, facts, field and time to come back are the same on the other side."""
    error = kind("what and what to do", metadata={"cost_milli_mu": "7"}, retry_after_s=1.25, field="sampling.top_p")
    back = from_status(to_status(error))
    assert type(back) is kind
    assert (back.reason, back.message, back.metadata) == (error.reason, error.message, error.metadata)
    assert (back.retry_after_s, back.field) == (1.25, "sampling.top_p")


def test_quota_subject_survives_the_wire() -> None:
    """A quota refusal says whose quota it was."""
    back = from_status(to_status(QuotaExceededError("used up", reason=Reason.QUOTA_HELD, subject="acme/tiny")))
    assert (back.reason, back.subject) == (Reason.QUOTA_HELD, "acme/tiny")


def test_a_foreign_status_has_no_reason_of_ours() -> None:
    """RESOURCE_EXHAUSTED from grpcio itself is not mistaken for one of our quota reasons."""
    back = from_status(status_pb2.Status(code=8, message="Received message larger than max"))
    assert isinstance(back, InvalidArgumentError)
    assert back.reason is Reason.UNSPECIFIED
    assert "send less" in back.message
    assert isinstance(from_status(status_pb2.Status(code=2, message="?")), InternalError)


def test_the_docstring_draws_the_whole_tree() -> None:
    """Every error class is in the module's drawing."""
    import fairlead.errors as module

    assert module.__doc__ is not None
    for kind in (*_leaves(FairleadError), InvalidArgumentError, NotLeaderError, UnavailableError):
        assert kind.__name__ in module.__doc__
