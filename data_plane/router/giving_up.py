"""What a client is told when no replica is left to try."""

from __future__ import annotations

from typing import Final

from data_plane.router.admission import Order
from data_plane.router.core.retry import reason_given_up
from data_plane.router.exchange import Receipt
from fairlead.errors import FairleadError, Reason, UnavailableError

_NO_REPLICA_RETRY_S: Final = 2.0


def given_up(order: Order, receipt: Receipt, delivered_tokens: int, failure: FairleadError | None) -> UnavailableError:
    """Says to a client that no attempt is left.

    Args:
        order: The request.
        receipt: What was tried.
        delivered_tokens: What the client has of the answer.
        failure: Why the last attempt failed; None where no replica could be picked for the first.
    """
    model_id, facts = order.model.model_id, {"attempts": str(receipt.attempts)}
    reason = reason_given_up(failure.reason if failure else None, delivered=bool(delivered_tokens))
    if reason is Reason.STREAM_BROKEN:
        return UnavailableError(
            f"the stream broke after {delivered_tokens} tokens; what arrived was charged",
            reason=Reason.STREAM_BROKEN,
            metadata={**facts, "output_tokens": str(delivered_tokens)},
        )
    if reason is Reason.NO_REPLICA:
        return UnavailableError(
            f"no replica of {model_id!r} can take the request now",
            reason=Reason.NO_REPLICA,
            metadata=facts,
            retry_after_s=_NO_REPLICA_RETRY_S,
        )
    if reason is Reason.QUEUE_FULL:
        return UnavailableError(
            f"every replica of {model_id!r} that may be tried is full",
            reason=Reason.QUEUE_FULL,
            metadata=facts,
            retry_after_s=(failure.retry_after_s if failure else None) or _NO_REPLICA_RETRY_S,
        )
    return UnavailableError(
        "the replica was lost before the first token and no other could take over; nothing was charged",
        reason=Reason.REPLICA_LOST,
        metadata=facts,
        retry_after_s=_NO_REPLICA_RETRY_S,
    )
