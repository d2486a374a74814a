"""The Engine protocol over OpenAI's HTTP API, for engines that somebody else runs.

Such an engine is never restarted: a replica whose probes fail says UNHEALTHY until they succeed. Each request is a
connection of its own while it runs, so closing the iterator cancels that request at once and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import msgspec

from common.generation import Finish, TokenBatch
from common.openai import messages
from common.openai.messages import Chunk, Usage
from common.openai.sse import EventReader, EventTooLargeError
from engines.engine import DirectWay, EngineDescription, EngineRequest
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import Reason, UnavailableError

_REFUSAL_BYTES_MAX = 65_536
_READ_BYTES = 65_536
_START_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0
_DONE = b"[DONE]"


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class OpenAISettings:
    """What such an engine is.

    Attributes:
        base_url: Of its API, as "http://127.0.0.1:8000/v1".
        model_name: The model there; empty takes the only one.
        key: Its API key; empty for none.
        sequences_max: Most sequences at once, as reported.
        kv_capacity_tokens: KV cache, as reported.
        context_tokens: Longest prompt plus output; 0 takes what the engine says (vLLM does), or 4096.
        prefix_cache: Whether it keeps the prefixes of prompts.
    """

    base_url: str
    model_name: str = ""
    key: str = ""
    sequences_max: int = 64
    kv_capacity_tokens: int = 65_536
    context_tokens: int = 0
    prefix_cache: bool = False


class OpenAIEngine:
    """An engine behind OpenAI's API. See engines.engine.Engine for the methods.

    Args:
        settings: What it is.
    """

    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self._base_url = settings.base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._model = settings.model_name
        self._live: dict[str, int] = {}
        self._progress_tokens = 0

    async def start(self) -> EngineDescription:
        """See Engine."""
        await self.stop()
        self._progress_tokens = 0
        headers = {"Authorization": f"Bearer {self._settings.key}"} if self._settings.key else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
        )
        try:
            return await self._describe(self._session)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """See Engine."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def alive(self) -> bool:
        """See Engine."""
        return self._session is not None

    @property
    def process_id(self) -> int:
        """See Engine."""
        return 0

    @property
    def progress_tokens(self) -> int:
        """See Engine."""
        return self._progress_tokens

    @property
    def kv_used_tokens(self) -> int:
        """Output tokens of the requests in flight: what their prompts hold is told at their end."""
        return sum(self._live.values())

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenBatch]:
        """See Engine."""
        if self._session is None:
            raise UnavailableError("The engine is not running.", reason=Reason.ENGINE_FAILED)
        path = "/chat/completions" if request.prompt.messages else "/completions"
        body = messages.request_body(request.prompt, request.sampling, self._model)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if request.traceparent:
            headers["traceparent"] = request.traceparent
        reading = _Reading()
        try:
            async with self._session.post(
                self._base_url + path, data=body, headers=headers, allow_redirects=False
            ) as answer:
                if answer.status != 200 or answer.content_type != "text/event-stream":
                    fields = {name.lower().encode(): value.encode() for name, value in answer.headers.items()}
                    refused = await answer.content.read(_REFUSAL_BYTES_MAX)
                    raise messages.refusal(answer.status, fields, refused)
                while not reading.ended and (data := await answer.content.read(_READ_BYTES)):
                    for batch in reading.take(data):
                        self._progress_tokens += batch.output_tokens
                        self._live[request.request_id] = reading.tokens
                        yield batch
            last = reading.last()
            self._progress_tokens += last.output_tokens
            yield last
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(f"The engine failed: {type(error).__name__}", reason=Reason.ENGINE_FAILED) from error
        finally:
            self._live.pop(request.request_id, None)

    async def _describe(self, session: aiohttp.ClientSession) -> EngineDescription:
        try:
            timeout = aiohttp.ClientTimeout(total=_START_TIMEOUT_S)
            async with session.get(self._base_url + "/models", timeout=timeout, allow_redirects=False) as answer:
                status, body, server = answer.status, await answer.read(), answer.headers.get("Server", "")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UnavailableError(
                f"{self._base_url} does not answer: {error or type(error).__name__}", reason=Reason.ENGINE_FAILED
            ) from error
        if status != 200:
            raise UnavailableError(f"{self._base_url}/models answers with {status}", reason=Reason.ENGINE_FAILED)
        found = self._find_model(body)
        settings = self._settings
        return EngineDescription(
            engine="openai",
            version=server,
            sequences_max=settings.sequences_max,
            kv_capacity_tokens=settings.kv_capacity_tokens,
            context_tokens=settings.context_tokens or found.max_model_len or 4096,
            prefix_cache=settings.prefix_cache,
            direct=DirectWay(engine_pb2.DIALECT_OPENAI, self._base_url, found.id),
        )

    def _find_model(self, body: bytes) -> _Model:
        try:
            models = {model.id: model for model in msgspec.json.decode(body, type=_Models).data}
        except (msgspec.DecodeError, UnicodeDecodeError):
            models = {}
        name = self._settings.model_name or (next(iter(models)) if len(models) == 1 else "")
        if name not in models:
            listed = ", ".join(sorted(models)[:10]) or "none"
            raise UnavailableError(
                f"{self._base_url} does not list the model {name!r} (it lists: {listed}); set model_name.",
                reason=Reason.ENGINE_MISSING,
            )
        self._model = name
        return models[name]


class _Reading:
    """Turns the events of one answer into batches.

    Attributes:
        ended: Nothing more is needed of the stream.
        tokens: Output tokens so far.
    """

    def __init__(self) -> None:
        self._events = EventReader()
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        self.ended = False
        self.tokens = 0

    def take(self, data: bytes) -> list[TokenBatch]:
        """Reads what came.

        Raises:
            FairleadError: The engine failed, or this is no answer.
        """
        batches: list[TokenBatch] = []
        try:
            for event in self._events.feed(data):
                if event == _DONE:
                    self.ended = True
                    break
                self._read(messages.read_chunk(event), batches)
        except (EventTooLargeError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnavailableError("The engine cannot be understood.", reason=Reason.ENGINE_FAILED) from error
        return batches

    def last(self) -> TokenBatch:
        """The last batch.

        Raises:
            UnavailableError: The answer was not finished.
        """
        if self._finish is None:
            raise UnavailableError("The engine ended the stream unfinished.", reason=Reason.ENGINE_FAILED)
        input_tokens, cached_tokens = messages.input_tokens(self._usage)
        missing = max(0, messages.output_tokens(self._usage, self.tokens) - self.tokens)
        return TokenBatch("", missing, self._finish, input_tokens, cached_tokens)

    def _read(self, chunk: Chunk, batches: list[TokenBatch]) -> None:
        if chunk.error is not None:
            raise messages.failure_inside(chunk.error)
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices or ():
            if choice.index or self._finish is not None:
                continue
            text, counts = messages.text_of(choice)
            if counts:
                batches.append(TokenBatch(text, self._count(chunk.usage)))
            if choice.finish_reason is not None:
                self._finish = messages.FINISHES.get(choice.finish_reason, Finish.STOP)

    def _count(self, usage: Usage | None) -> int:
        tokens = 1 if usage is None else max(0, messages.output_tokens(usage, self.tokens + 1) - self.tokens)
        self.tokens += tokens
        return tokens
