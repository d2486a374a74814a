"""Engines that speak OpenAI's API: vLLM, SGLang, llama.cpp, a provider, another Fairlead.

A chunk of text counts as one token when it comes, and the server's own count at the end puts that right: tokens it
counts and the router did not are told with the last message, so that what was delivered comes to the usage. Where the
chunks were more than its tokens, the larger number stands, as everywhere in settlement. A server that says its usage
with every chunk (vLLM's continuous_usage_stats) is counted by that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from common.clock import Clock
from common.generation import FINISH_REASONS, Finish, prompt_of, sampling_of
from common.openai import messages
from common.openai.messages import Choice, Chunk, Usage
from common.openai.sse import EventReader, EventTooLargeError
from data_plane.relay.http1.client import HttpPool
from data_plane.relay.http1.client_calls import Fault, HttpCall, Origin
from data_plane.router.dialects.credentials import Credentials, origin_of
from data_plane.router.dialects.running import Running
from data_plane.router.upstream import Metadata, Receiver
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, InvalidArgumentError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb

_DONE: Final = b"[DONE]"
_REFUSAL_BYTES_MAX: Final = 65_536
_TARGETS_MAX: Final = 1024
_LOOKS_MAX: Final = 4  # the first event of a stream says more than the others
_TEXT: Final = re.compile(rb'"(?:content|text)":\s*"([^"\\]*)"')
_PLAIN: Final = re.compile(rb'[^"\\\x00-\x1f]+')  # what stands for itself in JSON
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class OpenAIUpstream:
    """See data_plane.router.upstream.Upstream.

    Args:
        pool: Connections.
        credentials: For engines that want some.
        clock: Monotonic time.
    """

    def __init__(self, pool: HttpPool, credentials: Credentials, clock: Clock) -> None:
        self._pool = pool
        self._credentials = credentials
        self._clock = clock
        self._targets: dict[tuple[str, str], _Target] = {}

    def start(
        self,
        replica: engine_pb2.Replica,
        request: bytes,
        *,
        deadline_ns: int,
        metadata: Metadata,
        receiver: Receiver,
    ) -> OpenAIRunning:
        """See Upstream."""
        running = OpenAIRunning(receiver, self._clock, deadline_ns)
        try:
            asked = engine_pb2.EngineGenerateRequest.FromString(request).request
            prompt, sampling = prompt_of(asked), sampling_of(asked.sampling)
            target = self._target(replica)
        except FairleadError as error:
            running.fail_soon(error)
            return running
        body = messages.request_body(prompt, sampling, replica.engine_model)
        head = target.head(chat=bool(prompt.messages), size=len(body), trace=_traceparent(metadata))
        running.call = self._pool.send(target.origin, head + body, running)
        return running

    def _target(self, replica: engine_pb2.Replica) -> _Target:
        key = (replica.engine_address, replica.engine_credentials)
        found = self._targets.get(key)
        if found is None:
            try:
                origin, path = origin_of(replica.engine_address)
                authorization = b""
                if replica.engine_credentials:
                    authorization = self._credentials.authorization(replica.engine_credentials, origin)
            except InvalidArgumentError as error:
                # Not the client's.
                raise UnavailableError(
                    f"the replica's engine cannot be reached: {error.message}", reason=Reason.ENGINE_MISSING
                ) from error
            if len(self._targets) >= _TARGETS_MAX:
                self._targets.clear()
            found = self._targets[key] = _Target(origin, path, authorization)
        return found


class _Target:
    """Where an engine is, and what is said to it every time.

    Args:
        origin: Where.
        path: Of its API, without a slash at the end.
        authorization: The header's value, or empty.
    """

    def __init__(self, origin: Origin, path: str, authorization: bytes) -> None:
        self.origin = origin
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        if origin.port != (443 if origin.tls else 80):
            host += f":{origin.port}"
        rest = f" HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n".encode()
        if authorization:
            rest += b"authorization: " + authorization + b"\r\n"
        rest += b"content-length: "
        self._chat = b"POST " + path.encode() + b"/chat/completions" + rest
        self._plain = b"POST " + path.encode() + b"/completions" + rest

    def head(self, *, chat: bool, size: int, trace: bytes) -> bytes:
        """A request's head.

        Args:
            chat: Of a conversation.
            size: Of its content, bytes.
            trace: Further header lines.
        """
        return (self._chat if chat else self._plain) + b"%d\r\n%b\r\n" % (size, trace)


class OpenAIRunning(Running):
    """A request at such an engine; told by its HTTP call.

    Attributes:
        call: The HTTP call, once there is one.
    """

    __slots__ = (
        "_after",
        "_before",
        "_body",
        "_events",
        "_fields",
        "_finish_said",
        "_looks",
        "_status",
        "_usage",
        "call",
    )

    def __init__(self, receiver: Receiver, clock: Clock, deadline_ns: int) -> None:
        super().__init__(receiver, clock, deadline_ns)
        self.call: HttpCall | None = None
        self._events = EventReader()
        self._status = 0
        self._fields: Mapping[bytes, bytes] = {}
        self._body = b""  # of a refusal
        self._finish_said: Finish | None = None
        self._usage: Usage | None = None
        self._before = self._after = b""  # what stood around the text of an earlier event; empty for unknown
        self._looks = _LOOKS_MAX

    def pause(self) -> None:
        """See upstream.Running."""
        if self.call is not None:
            self.call.pause()

    def resume(self) -> None:
        """See upstream.Running."""
        if self.call is not None:
            self.call.resume()

    # --- HttpReceiver

    def on_head(self, status: int, fields: Mapping[bytes, bytes]) -> None:
        """See HttpReceiver."""
        if status == 200 and not fields.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
            self.fail(_garbage("it does not answer with a stream of events"))
            return
        self._status, self._fields = status, fields

    def on_body(self, data: bytes) -> None:
        """See HttpReceiver."""
        if self.finished:
            return
        if self._status != 200:
            self._body += data
            if len(self._body) >= _REFUSAL_BYTES_MAX:
                self._refused()
            return
        before, after = self._before, self._after
        if before and data.startswith(before) and data.endswith(after) and not self.over and self._events.between:
            # All but the text is as in that earlier event, which is how nearly all of a stream comes.
            text = data[len(before) : len(data) - len(after)]
            if _PLAIN.fullmatch(text) and (text.isascii() or _is_text(text)):
                self.piece(text, 1)
                return
        try:
            events = self._events.feed(data)
        except EventTooLargeError:
            self.fail(_garbage("an event of its stream is too large"))
            return
        for event in events:
            if self.over or self.finished:
                return
            self._take(event)

    def on_end(self, fault: Fault | None) -> None:
        """See HttpReceiver."""
        if not self.over and not self.finished:
            if self._finish_said is not None:
                # All its text is here; what is missing is at most the usage.
                self._finish(self._finish_said)
            elif self._status not in (0, 200):
                self._refused()
            elif fault is None:
                self.fail(_unfinished())
            else:
                self.fail(_FAULTS[fault]())
        self.ended()

    # ---

    def _take(self, event: bytes) -> None:
        if event == _DONE:
            if self._finish_said is not None:
                self._finish(self._finish_said)
            else:
                self.fail(_unfinished())
            return
        try:
            chunk = messages.read_chunk(event)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.fail(_garbage("an event of its stream is no chunk of an answer"))
            return
        if chunk.error is not None:
            self.fail(messages.failure_inside(chunk.error))
            return
        usage = chunk.usage
        if usage is not None:
            self._usage = usage
        if chunk.choices and self._finish_said is None:
            self._read(event, chunk, chunk.choices)

    def _read(self, event: bytes, chunk: Chunk, choices: list[Choice]) -> None:
        for choice in choices:
            if choice.index or self.over:
                continue
            text, counts = messages.text_of(choice)
            if counts:
                tokens = 1
                if chunk.usage is not None and chunk.usage.completion_tokens is not None:
                    tokens = max(0, chunk.usage.completion_tokens - self.tokens)
                coded = text.encode()
                self.piece(coded, tokens)
                if self._looks and len(choices) == 1 and chunk.usage is None and choice.finish_reason is None:
                    self._look(event, coded)
            if choice.finish_reason is not None:
                self._finish_said = messages.FINISHES.get(choice.finish_reason, Finish.STOP)
                self._before = b""

    def _look(self, event: bytes, text: bytes) -> None:
        """Remembers what stands around the text of an event that says nothing else."""
        self._looks -= 1
        found = list(_TEXT.finditer(event))
        if len(found) == 1 and found[0][1] == text and b"\n" not in event:
            begin, end = found[0].span(1)
            self._before, self._after = b"data: " + event[:begin], event[end:] + b"\n\n"

    def _finish(self, said: Finish) -> None:
        input_tokens, cached_tokens = messages.input_tokens(self._usage)
        output_tokens = messages.output_tokens(self._usage, self.tokens)
        usage = pb.Usage(input_tokens=input_tokens, cached_input_tokens=cached_tokens, output_tokens=output_tokens)
        self.finish(FINISH_REASONS[said], usage, tokens=max(0, output_tokens - self.tokens))

    def _refused(self) -> None:
        self.fail(messages.refusal(self._status, self._fields, self._body))

    def _close(self) -> None:
        if self.call is not None:
            self.call.cancel()


def _is_text(data: bytes) -> bool:
    """Whether it is UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _traceparent(metadata: Metadata) -> bytes:
    for name, value in metadata:
        if name == "traceparent" and _TRACEPARENT.fullmatch(value):
            return f"traceparent: {value}\r\n".encode()
    return b""


def _lost(what: str) -> UnavailableError:
    return UnavailableError(f"the engine {what}", reason=Reason.REPLICA_LOST)


def _unfinished() -> UnavailableError:
    return _lost("ended the stream without finishing it")


def _garbage(what: str) -> UnavailableError:
    return UnavailableError(f"the engine cannot be understood: {what}", reason=Reason.ENGINE_FAILED)


_FAULTS: Final = {
    Fault.UNREACHABLE: lambda: UnavailableError("the engine cannot be connected to", reason=Reason.NOT_READY),
    Fault.LOST: lambda: _lost("has broken the connection"),
    Fault.GARBAGE: lambda: _garbage("it does not speak HTTP"),
}
