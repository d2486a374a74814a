"""What clients of gRPC get at the end of a request."""

from __future__ import annotations

from typing import Final

from data_plane.relay.grpc import wire
from data_plane.router.exchange import Finished, Receipt
from fairlead.inference.v1 import inference_pb2 as pb

_Whole = pb.GenerateResponse
_MODEL: Final = wire.bytes_tag(_Whole.MODEL_FIELD_NUMBER)
_WHOLE_TEXT: Final = wire.bytes_tag(_Whole.TEXT_FIELD_NUMBER)

# GenerateResponse and StreamGenerateResponse number these alike; a test holds them to it.
_REQUEST_ID: Final = wire.bytes_tag(_Whole.REQUEST_ID_FIELD_NUMBER)
_FINISH_REASON: Final = wire.number_tag(_Whole.FINISH_REASON_FIELD_NUMBER)
_USAGE: Final = wire.bytes_tag(_Whole.USAGE_FIELD_NUMBER)
_COST: Final = wire.bytes_tag(_Whole.COST_FIELD_NUMBER)
_REPLICA_ID: Final = wire.bytes_tag(_Whole.REPLICA_ID_FIELD_NUMBER)

_INPUT: Final = wire.number_tag(pb.Usage.INPUT_TOKENS_FIELD_NUMBER)
_CACHED: Final = wire.number_tag(pb.Usage.CACHED_INPUT_TOKENS_FIELD_NUMBER)
_OUTPUT: Final = wire.number_tag(pb.Usage.OUTPUT_TOKENS_FIELD_NUMBER)

_ESTIMATED: Final = wire.number_tag(pb.Cost.ESTIMATED_MILLI_MU_FIELD_NUMBER)
_SETTLED: Final = wire.number_tag(pb.Cost.SETTLED_MILLI_MU_FIELD_NUMBER)
_PREFILL: Final = wire.number_tag(pb.Cost.PREFILL_MILLI_MU_FIELD_NUMBER)
_DECODE: Final = wire.number_tag(pb.Cost.DECODE_MILLI_MU_FIELD_NUMBER)
_LEFT: Final = wire.number_tag(pb.Cost.QUOTA_LEFT_MILLI_MU_FIELD_NUMBER)


def whole_message(receipt: Receipt, text: bytes, finished: Finished) -> bytes:
    """A whole answer: an inference.v1.GenerateResponse.

    Args:
        receipt: Of the request.
        text: UTF-8.
        finished: Its end.
    """
    model, said = wire.content(_MODEL, receipt.model_id.encode()), wire.content(_WHOLE_TEXT, text)
    return b"%b%b%b" % (model, said, last_message(receipt, finished))


def last_message(receipt: Receipt, finished: Finished) -> bytes:
    """The end of a stream: an inference.v1.StreamGenerateResponse.

    Args:
        receipt: Of the request.
        finished: Its end.
    """
    usage, cost = finished.usage, finished.cost
    counts = b"%b%b%b" % (
        wire.number(_INPUT, usage.input_tokens),
        wire.number(_CACHED, usage.cached_input_tokens),
        wire.number(_OUTPUT, usage.output_tokens),
    )
    charge = b"%b%b%b%b%b" % (
        wire.number(_ESTIMATED, cost.estimated_milli_mu),
        wire.number(_SETTLED, cost.settled_milli_mu),
        wire.number(_PREFILL, cost.prefill_milli_mu),
        wire.number(_DECODE, cost.decode_milli_mu),
        wire.number(_LEFT, cost.quota_left_milli_mu),
    )
    return b"%b%b%b%b" % (
        begin(receipt),
        wire.number(_FINISH_REASON, finished.finish_reason),
        wire.message(_USAGE, counts),
        wire.message(_COST, charge),
    )


def begin(receipt: Receipt) -> bytes:
    """What the first message of a stream says besides its piece."""
    return wire.content(_REQUEST_ID, receipt.request_id.encode()) + wire.content(
        _REPLICA_ID, receipt.replica_id.encode()
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
