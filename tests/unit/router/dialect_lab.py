"""What tests of dialects share: a receiver that writes down, and a request."""

from __future__ import annotations

from typing import Any

from common.clock import SystemClock
from data_plane.relay.grpc import pieces
from data_plane.router.upstream import Running, Upstream
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.waiting import eventually

Message = engine_pb2.EngineGenerateResponse


class Noted:
    """Writes down what an upstream tells.

    Attributes:
        texts: Of each piece.
        counts: Tokens of each piece.
        messages: Whatever was no piece.
        ends: At most one.
        running: The request, once it was started.
        cancel_at: Cancels at so many pieces.
    """

    def __init__(self, cancel_at: int = -1) -> None:
        self.texts: list[str] = []
        self.counts: list[int] = []
        self.messages: list[Message] = []
        self.ends: list[FairleadError | None] = []
        self.running: Running | None = None
        self.cancel_at = cancel_at
        self.cancelled = False

    def on_piece(self, piece: bytes, tokens: int) -> None:
        self._open()
        assert pieces.tokens_of(piece) == tokens
        assert pieces.read(piece).text == pieces.text_of(piece).decode()
        self.texts.append(pieces.text_of(piece).decode())
        self.counts.append(tokens)
        if len(self.texts) == self.cancel_at:
            self.cancel()

    def on_message(self, message: Message) -> None:
        self._open()
        self.messages.append(message)

    def on_end(self, failure: FairleadError | None) -> None:
        self._open()
        self.ends.append(failure)

    def cancel(self) -> None:
        assert self.running is not None
        self.cancelled = True
        self.running.cancel()

    def _open(self) -> None:
        assert not self.ends, "told after the end"
        assert not self.cancelled, "told after it was cancelled"
        assert self.running is not None, "told before start() had returned"

    @property
    def text(self) -> str:
        return "".join(self.texts) + "".join(each.text for each in self.messages)

    @property
    def tokens(self) -> int:
        return sum(self.counts) + sum(each.output_tokens for each in self.messages)

    @property
    def last(self) -> Message:
        return self.messages[-1]

    @property
    def failure(self) -> FairleadError:
        assert len(self.ends) == 1, self.ends
        assert self.ends[0] is not None
        return self.ends[0]

    async def ended(self, timeout_s: float = 10.0) -> None:
        await eventually(lambda: self.ends, timeout_s, "the end of a request")


def request_of(prompt: str = "hi", *, chat: tuple[tuple[str, str], ...] = (), **sampling: Any) -> Any:
    """A request as the router hands it on."""
    inner = pb.GenerateRequest(model="m", sampling=pb.SamplingParameters(**({"max_tokens": 100} | sampling)))
    if chat:
        inner.chat.messages.extend(pb.ChatMessage(role=role, content=content) for role, content in chat)
    else:
        inner.prompt = prompt
    return engine_pb2.EngineGenerateRequest(request_id="r-1", tenant_id="t", request=inner)


def start(
    upstream: Upstream,
    replica: engine_pb2.Replica,
    request: engine_pb2.EngineGenerateRequest | None = None,
    *,
    left_s: float = 30.0,
    noted: Noted | None = None,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Noted:
    """Starts a request and writes down what becomes of it."""
    noted = noted or Noted()
    noted.running = upstream.start(
        replica,
        (request if request is not None else request_of()).SerializeToString(),
        deadline_ns=SystemClock().monotonic_ns() + int(left_s * 1e9),
        metadata=metadata,
        receiver=noted,
    )
    return noted
