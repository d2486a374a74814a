"""Engines behind Triton: one ModelStreamInfer per request, as the replica's agent would make it.

What the agent has found out about the model (tensors, chat template, whether errors come as statuses) stands in the
replica's record, and the tensors are made by the code the agent itself uses.

A stream that is cancelled between its last response and its end is a request that Triton 2.51 never lets go of: its
model can then not be unloaded. So once the last response, or an error in its place, has come, the stream is left to end
by itself.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from common.clock import Clock
from common.generation import FINISH_REASONS, TokenBatch, prompt_of, sampling_of
from common.triton.wire import Dialect, Reading, ServedModel, dialect_of, failure, failure_inside, tensors_of
from data_plane.relay.grpc.client_end import ClientCall
from data_plane.relay.grpc.framing import PREFIX_BYTES, framed
from data_plane.relay.grpc.pool import Pool
from data_plane.relay.http2.header_blocks import literal
from data_plane.router.dialects.running import Running
from data_plane.router.dialects.triton_messages import PATH, NoMessageError, ResponseReader, request_message
from data_plane.router.upstream import Metadata, Receiver
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, InvalidArgumentError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb

_TARGETS_MAX: Final = 4096
_STATUS_ERRORS: Final = literal(b"triton_grpc_error", b"true")
# Triton traces every request that brings a context, sampled or not, so only a sampled one is handed on.
_SAMPLED: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]")
_BROKEN: Final = (Reason.NOT_READY, Reason.REPLICA_LOST)


class TritonUpstream:
    """See data_plane.router.upstream.Upstream.

    Args:
        pool: Connections to Tritons.
        clock: Monotonic time.
    """

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._targets: dict[str, _Target] = {}

    def start(
        self,
        replica: engine_pb2.Replica,
        request: bytes,
        *,
        deadline_ns: int,
        metadata: Metadata,
        receiver: Receiver,
    ) -> TritonRunning:
        """See Upstream."""
        target = self._target(replica)
        asked = engine_pb2.EngineGenerateRequest.FromString(request)
        max_tokens = asked.request.sampling.max_tokens
        running = TritonRunning(receiver, self._clock, deadline_ns, target.reading(max_tokens))
        try:
            body = target.body(asked)
        except FairleadError as error:
            running.fail_soon(error)
            return running
        more = _STATUS_ERRORS if replica.triton.status_errors else b""
        more += b"".join(
            literal(b"traceparent", value.encode())
            for name, value in metadata
            if name == "traceparent" and _SAMPLED.fullmatch(value)
        )
        running.call = self._pool.open(replica.engine_address, PATH, more, framed(body), running)
        return running

    def _target(self, replica: engine_pb2.Replica) -> _Target:
        found = self._targets.get(replica.replica_id)
        if found is None or found.record is not replica:
            if len(self._targets) >= _TARGETS_MAX:
                self._targets.clear()
            found = self._targets[replica.replica_id] = _Target(replica)
        return found


class _Target:
    """A replica's model, as its record describes it.

    Args:
        record: The record.

    Attributes:
        record: The record.
    """

    def __init__(self, record: engine_pb2.Replica) -> None:
        self.record = record
        inputs = {each.name: (each.datatype, each.rank) for each in record.triton.inputs}
        dialect = dialect_of(inputs)
        self._known = dialect is not None
        outputs = frozenset(record.triton.outputs)
        self._model = ServedModel(record.engine_model, dialect or Dialect.ENSEMBLE, inputs, outputs, {})

    def reading(self, max_tokens: int) -> Reading:
        """What reads the answer of a request for so many tokens."""
        return Reading(self._model, max_tokens, self.record.context_tokens)

    def body(self, request: engine_pb2.EngineGenerateRequest) -> bytes:
        """A request as Triton takes it.

        Raises:
            FairleadError: The model cannot do it, or nothing is known of the model.
        """
        if not self._known:
            raise UnavailableError("the replica's record does not describe its model", reason=Reason.ENGINE_MISSING)
        prompt = prompt_of(request.request)
        text = self._rendered(prompt.messages) if prompt.messages else prompt.text
        tensors = tensors_of(self._model, sampling_of(request.request.sampling), text)
        return request_message(self._model.name, request.request_id, tensors)

    def _rendered(self, messages: tuple[tuple[str, str], ...]) -> str:
        if not self.record.triton.chat_template:
            raise InvalidArgumentError("This model has no chat template; send plain text instead.", field="messages")
        # Imported here because most routers need no templates.
        from common.triton.chat import template_of

        tokens = self.record.triton.template_tokens
        return template_of(self.record.triton.chat_template, tuple(sorted(tokens.items()))).render(messages)


class TritonRunning(Running):
    """A request at a Triton; told by its gRPC call.

    Attributes:
        call: The call, once there is one.
    """

    __slots__ = (
        "_alike_tokens",
        "_count_at",
        "_deltas",
        "_input_at",
        "_names",
        "_reader",
        "_reading",
        "_text_at",
        "call",
    )

    def __init__(self, receiver: Receiver, clock: Clock, deadline_ns: int, reading: Reading) -> None:
        super().__init__(receiver, clock, deadline_ns)
        self.call: ClientCall | None = None
        self._reader = ResponseReader()
        self._reading = reading
        self._deltas = reading.deltas
        self._names: list[str] = []
        self._alike_tokens = -1  # of a response that differs from the last in its text alone; -1 for unknown
        self._text_at = self._count_at = self._input_at = -1  # places among the tensors; -1 for none

    def pause(self) -> None:
        """See upstream.Running."""
        if self.call is not None:
            self.call.pause()

    def resume(self) -> None:
        """See upstream.Running."""
        if self.call is not None:
            self.call.resume()

    # --- Reply

    def on_message(self, framed: bytes) -> None:
        """See Reply."""
        reader, alike_tokens = self._reader, self._alike_tokens
        if alike_tokens >= 0:
            text = reader.next_text(framed, PREFIX_BYTES)
            if text is not None:
                if not text.isascii():
                    text = text.decode(errors="replace").encode()
                self._reading.output_tokens += alike_tokens
                self.piece(text, alike_tokens)
                return
        if self.finished:
            return
        self._alike_tokens = -1
        try:
            reader.read(framed, PREFIX_BYTES)
            if reader.names is not self._names:
                self._find(reader.names)
            if not self._deltas or reader.final or self._text_at < 0 or reader.error or not self._quick(reader.raw):
                self._take()
        except (NoMessageError, struct.error):
            self.fail(_garbage())

    def on_end(self, failure: FairleadError | None) -> None:
        """See Reply."""
        if not self.finished:
            if failure is None:
                self._finish(self._reading.end())
            else:
                self.fail(_meaning(failure), ending=True)
        self.ended()

    # ---

    def _find(self, names: list[str]) -> None:
        self._names = names
        self._text_at, self._count_at, self._input_at = (
            names.index(name) if name in names else -1
            for name in ("text_output", "num_output_tokens", "num_input_tokens")
        )

    def _quick(self, raw: list[bytes]) -> bool:
        """Hands on new text as it came; False where it is not that simple."""
        text = raw[self._text_at]
        if len(text) - 4 != int.from_bytes(text[:4], "little"):
            return False
        text = text[4:]
        if not text.isascii():
            text = text.decode(errors="replace").encode()
        reading, tokens = self._reading, 1
        if self._count_at >= 0:
            count = raw[self._count_at]
            tokens = int.from_bytes(count, "little", signed=True)
            if len(count) != 4 or tokens < 0:
                return False
        reading.output_tokens += tokens
        if self._input_at >= 0:
            reading.input_tokens = int.from_bytes(raw[self._input_at], "little", signed=True)
        if text or tokens:
            self._alike_tokens = tokens
            self.piece(text, tokens)
        return True

    def _take(self) -> None:
        reader = self._reader
        if reader.error:
            self.fail(failure_inside(reader.error), ending=True)
            return
        tensors = dict(zip(reader.names, reader.raw, strict=False))
        batch = self._reading.read(tensors, ended=reader.final)
        if batch is None:
            return
        if batch.output_tokens < 0:
            raise NoMessageError("fewer tokens than none")
        if reader.final:
            self._finish(batch)
        elif batch.text or batch.output_tokens:
            self.piece(batch.text.encode(), batch.output_tokens)

    def _finish(self, batch: TokenBatch) -> None:
        assert batch.finish is not None
        usage = pb.Usage(
            input_tokens=max(0, batch.input_tokens),
            cached_input_tokens=batch.cached_input_tokens,
            output_tokens=self._reading.output_tokens,
        )
        self.finish(FINISH_REASONS[batch.finish], usage, batch.text, batch.output_tokens)

    def _close(self) -> None:
        if self.call is not None:
            self.call.cancel()


def _meaning(error: FairleadError) -> FairleadError:
    """What a failed call means for the request: as the agent says it, beside broken connections."""
    if isinstance(error, UnavailableError) and error.reason in _BROKEN:
        return error
    return failure(error.code, error.message)


def _garbage() -> UnavailableError:
    return UnavailableError("the engine cannot be understood: this is no response", reason=Reason.ENGINE_FAILED)
