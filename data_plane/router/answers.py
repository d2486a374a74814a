"""What clients of gRPC get at the end of a request."""

from __future__ import annotations

from data_plane.router.exchange import Finished, Receipt
from fairlead.inference.v1 import inference_pb2 as pb


def whole_message(receipt: Receipt, text: str, finished: Finished) -> pb.GenerateResponse:
    """A whole answer."""
    return pb.GenerateResponse(
        request_id=receipt.request_id,
        model=receipt.model_id,
        text=text,
        finish_reason=finished.finish_reason,
        usage=finished.usage,
        cost=finished.cost,
        replica_id=receipt.replica_id,
    )


def last_message(receipt: Receipt, finished: Finished) -> pb.StreamGenerateResponse:
    """The end of a stream."""
    return pb.StreamGenerateResponse(
        request_id=receipt.request_id,
        finish_reason=finished.finish_reason,
        usage=finished.usage,
        cost=finished.cost,
        replica_id=receipt.replica_id,
    )


def receipt_metadata(receipt: Receipt) -> tuple[tuple[str, str], ...]:
    """What a client is told of a request beside its answer."""
    return (
        ("fairlead-request-id", receipt.request_id),
        ("fairlead-replica", receipt.replica_id),
        ("fairlead-estimated-milli-mu", str(receipt.estimated_milli_mu)),
        ("fairlead-settled-milli-mu", str(receipt.settled_milli_mu)),
        ("fairlead-quota-left-milli-mu", str(receipt.quota_left_milli_mu)),
    )
