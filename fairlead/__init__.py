"""Fairlead's client SDK: multi-tenant LLM inference with quotas in model units.

    import fairlead

    with fairlead.Client("127.0.0.1:8081", api_key="fl-...") as client:
        answer = client.generate("Once upon a time", model="tiny-llama", max_tokens=32)
        print(answer.text, answer.usage.output_tokens, answer.cost.settled_mu, answer.replica_id)

        with client.stream_chat([{"role": "user", "content": "Hello"}], model="tiny-llama") as stream:
            for piece in stream:
                print(piece.text, end="", flush=True)
        print(stream.result.cost.quota_left_mu)

`AsyncClient` is the same for asyncio. Everything raised is a `FairleadError`; `reason` says why in a stable word and
`retry_after_s` when to come back. Refusals with a time to come back and unreachable routers are tried again by
themselves, under one request id and within the deadline, until the first token has arrived (`RetryPolicy`).
"""

from fairlead.errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    FairleadError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    Reason,
    RequestCancelledError,
    UnauthenticatedError,
    UnavailableError,
)
from fairlead.sdk.async_client import AsyncClient, AsyncStream
from fairlead.sdk.client import Client, Stream
from fairlead.sdk.decisions import Attempt, Bucket, CandidateScore, Decision, Explanation, Outcome
from fairlead.sdk.requests import Message, MessageLike, PriorityName, RequestOptions
from fairlead.sdk.results import Cost, FinishReason, Generation, ModelInfo, Piece, Usage
from fairlead.sdk.retries import RetryPolicy
from fairlead.sdk.settings import Tls
from fairlead.version import __version__

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncStream",
    "Attempt",
    "Bucket",
    "CandidateScore",
    "Client",
    "ConflictError",
    "Cost",
    "DeadlineExceededError",
    "Decision",
    "Explanation",
    "FailedPreconditionError",
    "FairleadError",
    "FinishReason",
    "Generation",
    "InternalError",
    "InvalidArgumentError",
    "Message",
    "MessageLike",
    "ModelInfo",
    "NotFoundError",
    "Outcome",
    "PermissionDeniedError",
    "Piece",
    "PriorityName",
    "QuotaExceededError",
    "Reason",
    "RequestCancelledError",
    "RequestOptions",
    "RetryPolicy",
    "Stream",
    "Tls",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
    "__version__",
]
