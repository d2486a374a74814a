"""Headers that tell a client what a request cost and how much is left."""

from __future__ import annotations

from typing import Final

from data_plane.relay.http1.answers import lines
from data_plane.router.core.holds import BucketView
from data_plane.router.exchange import Receipt

REQUEST_ID: Final = "x-fairlead-request-id"

_MILLI: Final = 1000


def receipt_lines(receipt: Receipt, *, final: bool) -> str:
    """The platform's own headers, as they stand in a head.

    Args:
        receipt: What is known.
        final: Whether the request has ended, so that its charge is known.
    """
    text = f"{REQUEST_ID}: {receipt.request_id}\r\n"
    if receipt.replica_id:
        text += lines({"x-fairlead-replica": receipt.replica_id})
        text += f"x-fairlead-estimated-milli-mu: {receipt.estimated_milli_mu}\r\n"
    quota = receipt.quota
    if quota is not None:
        text += f"x-fairlead-quota-left-milli-mu: {receipt.quota_left_milli_mu}\r\n" + quota_lines(quota, receipt)
    if final:
        text += f"x-fairlead-settled-milli-mu: {receipt.settled_milli_mu}\r\n"
    return text


def quota_lines(quota: BucketView, receipt: Receipt) -> str:
    """OpenAI's rate limit headers, as they stand in a head.

    The quota counts model units, so limits in requests and tokens are what it would admit of requests like this one.

    Args:
        quota: The tenant's bucket at this router.
        receipt: What this request cost.
    """
    left = max(0, quota.level_milli_mu)
    missing = quota.burst_milli_mu - left
    rate = quota.rate_milli_mu_per_minute
    reset = f"{missing * 60 / rate:.3f}s" if rate > 0 else "0s"
    text = (
        f"x-ratelimit-limit-mu: {rate / _MILLI:g}\r\n"
        f"x-ratelimit-remaining-mu: {left / _MILLI:g}\r\n"
        f"x-ratelimit-reset-mu: {reset}\r\n"
    )
    each = receipt.settled_milli_mu or receipt.estimated_milli_mu
    if each > 0:
        tokens = receipt.estimated_tokens
        text += (
            f"x-ratelimit-limit-requests: {rate // each}\r\n"
            f"x-ratelimit-remaining-requests: {left // each}\r\n"
            f"x-ratelimit-reset-requests: {reset}\r\n"
            f"x-ratelimit-limit-tokens: {rate * tokens // each}\r\n"
            f"x-ratelimit-remaining-tokens: {left * tokens // each}\r\n"
            f"x-ratelimit-reset-tokens: {reset}\r\n"
        )
    return text
