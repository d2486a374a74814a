"""Headers that tell a client what a request cost and how much is left."""

from __future__ import annotations

from data_plane.router.core.holds import BucketView
from data_plane.router.exchange import Receipt

REQUEST_ID = "x-fairlead-request-id"

_MILLI = 1000


def receipt_headers(receipt: Receipt, *, final: bool) -> dict[str, str]:
    """The platform's own headers.

    Args:
        receipt: What is known.
        final: Whether the request has ended, so that its charge is known.
    """
    headers = {REQUEST_ID: receipt.request_id}
    if receipt.replica_id:
        headers["x-fairlead-replica"] = receipt.replica_id
        headers["x-fairlead-estimated-milli-mu"] = str(receipt.estimated_milli_mu)
    if receipt.quota is not None:
        headers["x-fairlead-quota-left-milli-mu"] = str(receipt.quota_left_milli_mu)
        headers |= quota_headers(receipt.quota, receipt)
    if final:
        headers["x-fairlead-settled-milli-mu"] = str(receipt.settled_milli_mu)
    return headers


def quota_headers(quota: BucketView, receipt: Receipt) -> dict[str, str]:
    """OpenAI's rate limit headers.

    The quota counts model units, so limits in requests and tokens are what it would admit of requests like this one.

    Args:
        quota: The tenant's bucket at this router.
        receipt: What this request cost.
    """
    left = max(0, quota.level_milli_mu)
    missing = quota.burst_milli_mu - left
    rate = quota.rate_milli_mu_per_minute
    reset = f"{missing * 60 / rate:.3f}s" if rate > 0 else "0s"
    headers = {
        "x-ratelimit-limit-mu": f"{rate / _MILLI:g}",
        "x-ratelimit-remaining-mu": f"{left / _MILLI:g}",
        "x-ratelimit-reset-mu": reset,
    }
    each = receipt.settled_milli_mu or receipt.estimated_milli_mu
    if each > 0:
        tokens = receipt.estimated_tokens
        headers |= {
            "x-ratelimit-limit-requests": str(rate // each),
            "x-ratelimit-remaining-requests": str(left // each),
            "x-ratelimit-reset-requests": reset,
            "x-ratelimit-limit-tokens": str(rate * tokens // each),
            "x-ratelimit-remaining-tokens": str(left * tokens // each),
            "x-ratelimit-reset-tokens": reset,
        }
    return headers
