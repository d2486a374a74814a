"""Headers that tell a client what a request cost and how much is left."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from data_plane.relay.http1.answers import lines
from data_plane.router.core.holds import BucketView
from data_plane.router.exchange import Receipt

_REPLICAS_MAX: Final = 1024
_MILLI: Final = 1000

# As they stand in a head. One template for all that go together: a line by itself costs as much as five in one.
_REQUEST_ID: Final = b"x-fairlead-request-id: %b\r\n"
_ESTIMATED: Final = b"x-fairlead-estimated-milli-mu: %d\r\n"
_SETTLED: Final = b"x-fairlead-settled-milli-mu: %d\r\n"
_QUOTA: Final = (
    b"x-fairlead-quota-left-milli-mu: %d\r\n"
    b"x-ratelimit-limit-mu: %g\r\n"
    b"x-ratelimit-remaining-mu: %g\r\n"
    b"x-ratelimit-reset-mu: %b\r\n"
)
_EACH: Final = (
    b"x-ratelimit-limit-requests: %d\r\n"
    b"x-ratelimit-remaining-requests: %d\r\n"
    b"x-ratelimit-reset-requests: %b\r\n"
    b"x-ratelimit-limit-tokens: %d\r\n"
    b"x-ratelimit-remaining-tokens: %d\r\n"
    b"x-ratelimit-reset-tokens: %b\r\n"
)


def request_id_line(request_id: str) -> bytes:
    """The header with a request's id."""
    return _REQUEST_ID % request_id.encode()


def receipt_lines(receipt: Receipt, *, final: bool) -> bytes:
    """The platform's own headers, as they stand in a head.

    Args:
        receipt: What is known.
        final: Whether the request has ended, so that its charge is known.
    """
    text = request_id_line(receipt.request_id)
    if receipt.replica_id:
        text += _replica_line(receipt.replica_id) + _ESTIMATED % receipt.estimated_milli_mu
    if receipt.quota is not None:
        text += _quota_lines(receipt.quota, receipt)
    if final:
        text += _SETTLED % receipt.settled_milli_mu
    return text


@lru_cache(_REPLICAS_MAX)
def _replica_line(replica_id: str) -> bytes:
    return lines({"x-fairlead-replica": replica_id})


def _quota_lines(quota: BucketView, receipt: Receipt) -> bytes:
    """What is left, and OpenAI's rate limit headers.

    The quota counts model units, so limits in requests and tokens are what it would admit of requests like this one.

    Args:
        quota: The tenant's bucket at this router.
        receipt: What this request cost.
    """
    left, rate = max(0, quota.level_milli_mu), quota.rate_milli_mu_per_minute
    reset = b"%.3fs" % ((quota.burst_milli_mu - left) * 60 / rate) if rate > 0 else b"0s"
    text = _QUOTA % (left, rate / _MILLI, left / _MILLI, reset)
    each = receipt.settled_milli_mu or receipt.estimated_milli_mu
    if each > 0:
        tokens = receipt.estimated_tokens
        text += _EACH % (rate // each, left // each, reset, rate * tokens // each, left * tokens // each, reset)
    return text
