"""One attempt of one request on one replica: it takes what the upstream brings and hands on what is new to the client.

Per token that is one call into another, no task and no clock but the loop's own.
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError

from data_plane.relay.grpc import pieces
from data_plane.relay.grpc.framing import PREFIX_BYTES
from data_plane.router.core.continuation import Replay
from data_plane.router.engine_messages import skipped
from data_plane.router.upstream import Running
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb


class Client:
    """Who gets the answer. Here and below a class and no Protocol: its calls are made for every token."""

    def deliver(self, piece: bytes, tokens: int) -> bool:
        """Hands on what is new; False where the client does not keep up."""
        raise NotImplementedError

    def finish(self, finish_reason: pb.FinishReason.ValueType, counted: pb.Usage) -> None:
        """The answer is whole."""
        raise NotImplementedError


class Watcher:
    """Who wants to know how the attempt goes."""

    def started(self) -> None:
        """Its first message came."""
        raise NotImplementedError

    def reported(self, load: engine_pb2.LoadReport) -> None:
        """The replica says how loaded it is."""
        raise NotImplementedError

    def ended(self, failure: Exception | None) -> None:
        """The attempt is over, once and by itself: with a whole answer, or by what is said."""
        raise NotImplementedError


class Attempt:
    """See the module. It ends once: whole, failed (both are told to the watcher) or left.

    Args:
        client: Who gets the answer.
        watcher: Told of the first message, of load and of the end.
        loop: That runs it.
        token_timeout_s: Longest silence of the replica after its first message, while the client keeps up.
        replay: What the client has of an earlier attempt, to be swallowed; None for nothing.
        kept: Where pieces are kept for another attempt or for a repeated request; None for nowhere.
    """

    __slots__ = (
        "_client",
        "_ended",
        "_heard_s",
        "_held",
        "_kept",
        "_loop",
        "_plain",
        "_replay",
        "_running",
        "_silence",
        "_started",
        "_time",
        "_token_timeout_s",
        "_watcher",
    )

    def __init__(
        self,
        client: Client,
        watcher: Watcher,
        *,
        loop: asyncio.AbstractEventLoop,
        token_timeout_s: float,
        replay: Replay | None = None,
        kept: list[bytes] | None = None,
    ) -> None:
        self._loop = loop
        self._time = loop.time
        self._client = client
        self._watcher = watcher
        self._token_timeout_s = token_timeout_s
        self._replay = replay
        self._kept = kept
        self._running: Running | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._heard_s = 0.0
        self._started = self._plain = self._held = self._ended = False

    def run(self, running: Running) -> None:
        """The request is at the replica.

        Args:
            running: Said to be so by the upstream.
        """
        self._running = running

    def leave(self) -> None:
        """Nobody wants the rest: the replica is told at once, and the watcher is not."""
        if self._ended:
            return
        self._ended, self._plain = True, False
        if self._silence is not None:
            self._silence.cancel()
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    def fail(self, error: Exception) -> None:
        """Ends the attempt; the replica is told at once."""
        if not self._ended:
            self.leave()
            self._watcher.ended(error)

    def resume(self) -> None:
        """The client keeps up again."""
        if self._held and self._running is not None:
            self._held = False
            self._heard_s = self._time()
            self._running.resume()

    def on_piece(self, piece: bytes, tokens: int) -> None:
        """See Receiver."""
        if not self._plain:
            self._on_first_pieces(piece)
            return
        self._heard_s = self._time()
        if self._kept is not None:
            self._kept.append(piece)
        try:
            if not self._client.deliver(piece, tokens):
                self._hold()
        except Exception as error:  # noqa: BLE001  # the boundary: it is this request's error, not its connection's
            self.fail(error)

    def on_message(self, message: engine_pb2.EngineGenerateResponse) -> None:
        """See Receiver."""
        if self._ended:
            return
        self._heard_s = self._time()
        try:
            whole = self._on_message(message)
        except Exception as error:  # noqa: BLE001  # as above
            self.fail(error)
            return
        if whole:
            self.leave()
            self._watcher.ended(None)

    def on_end(self, failure: FairleadError | None) -> None:
        """See Receiver."""
        self._running = None
        self.fail(
            failure or UnavailableError("the replica ended the stream without finishing it", reason=Reason.REPLICA_LOST)
        )

    def _on_first_pieces(self, piece: bytes) -> None:
        """Until it is clear that nothing is to be swallowed."""
        try:
            message = engine_pb2.EngineGenerateResponse.FromString(piece[PREFIX_BYTES:])
        except DecodeError:
            self.fail(UnavailableError("the replica sent what is no message", reason=Reason.REPLICA_LOST))
        else:
            self.on_message(message)

    def _on_message(self, message: engine_pb2.EngineGenerateResponse) -> bool:
        """Takes a message; whether the answer is whole with it."""
        if message.HasField("load"):
            self._watcher.reported(message.load)
        if not self._started:
            self._start()
        text, tokens = message.text, message.output_tokens
        if self._replay is not None:
            text, tokens = skipped(self._replay, message)
        if text or tokens:
            piece = pieces.piece(text.encode(), tokens)
            if self._kept is not None:
                self._kept.append(piece)
            if not self._client.deliver(piece, tokens):
                self._hold()
            if self._ended:  # the client left with it
                return False
        if message.finish_reason:
            self._client.finish(message.finish_reason, message.usage)
            return True
        if self._silence is None:
            self._silence = self._loop.call_later(self._token_timeout_s, self._check_silence)
        return False

    def _start(self) -> None:
        self._started = True
        self._plain = self._replay is None
        self._watcher.started()

    def _hold(self) -> None:
        if not self._held and self._running is not None:
            self._held = True
            self._running.pause()

    def _check_silence(self) -> None:
        """Ends an attempt whose replica is silent; one that waits for its client is not."""
        now_s = self._time()
        due_s = now_s + self._token_timeout_s if self._held else self._heard_s + self._token_timeout_s
        if now_s >= due_s:
            self.fail(
                UnavailableError("the replica fell silent in the middle of the stream", reason=Reason.REPLICA_LOST)
            )
        else:
            self._silence = self._loop.call_at(due_s, self._check_silence)
