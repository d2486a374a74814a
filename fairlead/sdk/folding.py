"""From the messages of a stream to what the caller gets."""

from __future__ import annotations

from fairlead.errors import InternalError, Reason
from fairlead.inference.v1 import inference_pb2
from fairlead.sdk.results import Generation, Piece, cost_from, finish_reason_from, usage_from


class StreamFold:
    """Folds the messages of one stream into pieces and a result.

    Args:
        request: What was asked.
    """

    def __init__(self, request: inference_pb2.GenerateRequest) -> None:
        self._request = request
        self._texts: list[str] = []
        self._last: inference_pb2.StreamGenerateResponse | None = None
        self._replica_id = ""

    def add(self, message: inference_pb2.StreamGenerateResponse) -> Piece | None:
        """Takes the next message; returns the piece to deliver, or None where it brought neither text nor tokens."""
        self._replica_id = message.replica_id or self._replica_id
        if message.finish_reason:
            self._last = message
        if not message.text and not message.output_tokens:
            return None
        self._texts.append(message.text)
        return Piece(message.text, message.output_tokens)

    def result(self, attempts: int) -> Generation:
        """The whole answer, once the stream ended.

        Args:
            attempts: Tries it took.

        Raises:
            InternalError: The stream ended without its last message, reason STREAM_BROKEN.
        """
        if self._last is None:
            raise InternalError(
                "the stream ended before its last message, so the text may be cut short and its cost is unknown: "
                "send the request again with a new request id",
                reason=Reason.STREAM_BROKEN,
                metadata={"request_id": self._request.request_id},
            )
        return Generation(
            text="".join(self._texts),
            finish_reason=finish_reason_from(self._last.finish_reason),
            usage=usage_from(self._last.usage),
            cost=cost_from(self._last.cost),
            model=self._request.model,
            replica_id=self._replica_id,
            request_id=self._last.request_id or self._request.request_id,
            attempts=attempts,
        )
