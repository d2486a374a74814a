"""What requests have in common in every dialect: one end, and no life beyond their deadline."""

from __future__ import annotations

import asyncio
from typing import Final

from common.clock import NS_PER_S, Clock
from data_plane.relay.grpc import pieces
from data_plane.router.upstream import Receiver
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import DeadlineExceededError, FairleadError
from fairlead.inference.v1 import inference_pb2 as pb

ENDING_S: Final = 5.0
"""How long an engine's stream may outlive the answer that has come whole, before it is closed."""

# Pieces of one token: their first bytes by the length of their text, as far as one byte tells it.
_QUICK_BYTES: Final = 124
_ONE: Final = b"\x18\x01"
_HEADS: Final = (b"\0\0\0\0\2", *(bytes((0, 0, 0, 0, size + 4, 0x12, size)) for size in range(1, _QUICK_BYTES)))


class Running:
    """A request at an engine; see data_plane.router.upstream.Running.

    Args:
        receiver: Whom it tells.
        clock: Monotonic time.
        deadline_ns: Its end.

    Attributes:
        finished: The answer came whole.
        over: The receiver is told nothing more.
        tokens: Told to the receiver so far.
    """

    __slots__ = ("_loop", "_receiver", "_timer", "finished", "over", "tokens")

    def __init__(self, receiver: Receiver, clock: Clock, deadline_ns: int) -> None:
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self.finished = self.over = False
        self.tokens = 0
        left_s = max(0.0, (deadline_ns - clock.monotonic_ns()) / NS_PER_S)
        self._timer = self._loop.call_later(left_s, self._late)

    # --- of the request itself

    def piece(self, text: bytes, tokens: int) -> None:
        """A piece came.

        Args:
            text: Valid UTF-8.
            tokens: What it stands for.
        """
        self.tokens += tokens
        size = len(text)
        if tokens == 1 and size < _QUICK_BYTES:
            self._receiver.on_piece(_HEADS[size] + text + _ONE, 1)
        else:
            self._slow_piece(text, tokens)

    def finish(self, reason: pb.FinishReason.ValueType, usage: pb.Usage, text: str = "", tokens: int = 0) -> None:
        """The answer is whole. Its stream is left to end by itself.

        Args:
            reason: Why.
            usage: The engine's counts; 0 where it does not tell.
            text: The last.
            tokens: The last, and those that were not told yet.
        """
        if self.over:
            return
        self.finished = True
        self.tokens += tokens
        last = engine_pb2.EngineGenerateResponse(text=text, output_tokens=tokens, finish_reason=reason, usage=usage)
        self._receiver.on_message(last)
        if not self.over:
            self.over = True
            self._receiver.on_end(None)
        self._await_end()

    def fail(self, error: FairleadError, *, ending: bool = False) -> None:
        """It has failed.

        Args:
            error: Why.
            ending: The engine's stream is left to end by itself; else it is closed at once.
        """
        if self.over:
            return
        if ending:
            self.over = self.finished = True
            self._await_end()
        else:
            self._stop()
        self._receiver.on_end(error)

    def fail_soon(self, error: FairleadError) -> None:
        """It has failed before it was begun; the receiver is told in the loop's next step."""
        self._loop.call_soon(self.fail, error)

    def ended(self) -> None:
        """The engine's stream has ended by itself."""
        self._timer.cancel()

    def _close(self) -> None:
        """Closes the engine's stream at once."""
        raise NotImplementedError

    # --- of the router

    def cancel(self) -> None:
        """See upstream.Running."""
        if self.finished:
            self.over = True  # what is left of its stream disturbs nobody
        elif not self.over:
            self._stop()

    def pause(self) -> None:
        """See upstream.Running."""
        raise NotImplementedError

    def resume(self) -> None:
        """See upstream.Running."""
        raise NotImplementedError

    def _slow_piece(self, text: bytes, tokens: int) -> None:
        piece = pieces.piece(text, tokens)
        if pieces.tokens_of(piece) == tokens:
            self._receiver.on_piece(piece, tokens)
        else:  # larger than pieces are
            self._receiver.on_message(engine_pb2.EngineGenerateResponse(text=text.decode(), output_tokens=tokens))

    def _await_end(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(ENDING_S, self._close)

    def _stop(self) -> None:
        self.over = True
        self._timer.cancel()
        self._close()

    def _late(self) -> None:
        self.fail(DeadlineExceededError("the deadline passed while a replica was working on the request"))
