"""The Engine protocol over Triton: a server of our own on this machine, or one that runs elsewhere.

Each request is a gRPC stream of its own, so closing the iterator cancels that request at once and nothing else.
"Ready" says little about Triton: with its model's process killed it stays ready while every request fails. So nothing
here judges health; every failure of a request is raised as UnavailableError, and the agent judges by results.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from common.triton.chat import ChatTemplate
from common.triton.wire import Reading, ServedModel, failure
from engines.engine import DirectWay, EngineDescription, EngineRequest, TokenBatch
from engines.triton.environment import default_directory
from engines.triton.messages import described, encode
from engines.triton.repository import ModelSpec, write_repository
from engines.triton.server import ServerSettings, TritonServer
from engines.triton.tensors import KNOWN_MODELS, Dialect
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, Reason, UnavailableError

TINY_MODEL = Path(__file__).resolve().parent / "models" / "tiny-llama"

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_END_OF_STREAM = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
# W3C trace context with the sampled bit set.
_SAMPLED = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]")
_POLL_S = 0.05
_CALL_TIMEOUT_S = 5.0
# A port that was free can be taken before Triton binds it.
_START_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """What a Triton engine is.

    Attributes:
        work_directory: Where the model repository and the log of our own server go; one per replica.
        endpoint: host:port of a Triton that somebody else runs; empty starts our own.
        dialect: Tensors of our own server's model. Of another server it is read, never assumed.
        model_directory: What our own server runs (OpenVINO IR); None means the tiny model. Of another server: where the
            model's tokenizer_config.json or chat_template.jinja is, for conversations; None refuses those, because
            another model's template would be wrong in silence.
        model_name: The model on another server; empty takes the first known name that is ready there.
        environment: The Triton environment of our own server.
        threads: Inference threads of our own server.
        sequences_max: Most sequences in one step of our own server; what is reported of another one.
        kv_capacity_tokens: KV cache of our own server, tokens; what is reported of another one.
        stream_interval_ms: Least time between two batches of a request of our own server; 0 for each token by itself.
        context_tokens: Longest prompt plus output reported of another server; our own knows its model's.
        prefix_cache: Whether another server keeps the prefixes of prompts; our own does.
        otlp_traces_url: OTLP/HTTP URL for our own server's spans; empty for none.
        start_timeout_s: How long a start may take.
    """

    work_directory: Path
    endpoint: str = ""
    dialect: Dialect = Dialect.ENSEMBLE
    model_directory: Path | None = None
    model_name: str = ""
    environment: Path = field(default_factory=default_directory)
    threads: int = 1
    sequences_max: int = 64
    kv_capacity_tokens: int = 65_536
    stream_interval_ms: int = 20
    context_tokens: int = 4096
    prefix_cache: bool = False
    otlp_traces_url: str = ""
    start_timeout_s: float = 60.0


class TritonEngine:
    """An engine behind Triton. See engines.engine.Engine for the methods.

    Args:
        settings: What it is.
    """

    def __init__(self, settings: TritonSettings) -> None:
        self._settings = settings
        self._server = None if settings.endpoint else TritonServer(_server_settings(settings))
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._model: ServedModel | None = None
        self._template = ChatTemplate("")
        self._live: set[Reading] = set()
        self._progress_tokens = 0
        self._context_tokens = 0

    async def start(self) -> EngineDescription:
        """See Engine."""
        await self.stop()
        self._progress_tokens = 0
        self._template = _template(self._settings)
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                return await self._start()
        except TimeoutError:
            tail = f"; its log ends: {self._server.log_tail()}" if self._server else ""
            message = f"Triton at {self.address} did not serve within {self._settings.start_timeout_s:g} s{tail}"
            await self.stop()
            raise UnavailableError(message, reason=Reason.ENGINE_FAILED) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """See Engine."""
        channel, self._channel, self._stub, self._model = self._channel, None, None, None
        if channel is not None:
            await channel.close(None)
        if self._server is not None:
            await self._server.stop()

    def alive(self) -> bool:
        """See Engine."""
        return self._server.alive() if self._server else self._channel is not None

    @property
    def process_id(self) -> int:
        """See Engine."""
        return self._server.process_id if self._server else 0

    @property
    def progress_tokens(self) -> int:
        """See Engine."""
        return self._progress_tokens

    @property
    def kv_used_tokens(self) -> int:
        """Contexts of the requests in flight. Cached prefixes that nobody uses count as free: they yield."""
        return sum(reading.input_tokens + reading.output_tokens for reading in self._live)

    @property
    def address(self) -> str:
        """host:port of the server's gRPC endpoint, or empty before the first start."""
        return self._server.address if self._server else self._settings.endpoint

    @property
    def metrics_address(self) -> str:
        """host:port of our own server's Prometheus metrics, or empty."""
        return self._server.metrics_address if self._server else ""

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenBatch]:
        """See Engine."""
        if self._stub is None or self._model is None:
            raise UnavailableError("The engine is not running.", reason=Reason.ENGINE_FAILED)
        prompt = self._template.render(request.prompt.messages) if request.prompt.messages else request.prompt.text
        message = encode(self._model, request, prompt)
        reading = Reading(self._model, request.sampling.max_tokens, self._context_tokens)
        call = self._stub.ModelStreamInfer(metadata=_metadata(request.traceparent, own_server=self._server is not None))
        self._live.add(reading)
        last: TokenBatch | None = None
        refused: FairleadError | None = None
        try:
            await _send(call, message)
            while (response := await call.read()) is not _END_OF_STREAM:
                try:
                    batch = reading.take(response)
                except FairleadError as error:
                    refused = error
                    continue
                self._progress_tokens += batch.output_tokens if batch else 0
                if reading.ended:
                    last = last or batch
                elif batch is not None:
                    yield batch
            # Only now, because a consumer may leave at the last batch, and a stream that is cancelled between its last
            # response and its end is a request that Triton 2.51 never lets go of: its model can then not be unloaded.
            if refused is not None:
                raise refused
            yield last or reading.end()
        except grpc.aio.AioRpcError as error:
            raise failure(error.code(), error.details() or "") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this task was cancelled but the call, because the channel was closed under it.
            raise UnavailableError("The engine was stopped.", reason=Reason.ENGINE_FAILED) from None
        finally:
            self._live.discard(reading)
            call.cancel()

    async def _start(self) -> EngineDescription:
        for attempt in range(1, _START_ATTEMPTS + 1):
            if self._server is not None:
                await asyncio.to_thread(write_repository, _model_spec(self._settings), self._repository)
                await self._server.start()
            self._channel = grpc.aio.insecure_channel(self.address, options=_CHANNEL_OPTIONS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            if await self._serves():
                return await self._describe()
            tail = self._server.log_tail() if self._server else ""
            await self.stop()
            if attempt == _START_ATTEMPTS or "in use" not in tail:
                raise UnavailableError(f"tritonserver ended while starting: {tail}", reason=Reason.ENGINE_FAILED)
        raise AssertionError("unreachable")

    @property
    def _repository(self) -> Path:
        return self._settings.work_directory / "repository"

    async def _serves(self) -> bool:
        """Waits until the server is ready; False where its process ended instead."""
        while self.alive():
            try:
                ready = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=_CALL_TIMEOUT_S)
                if ready.ready:
                    return True
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise failure(error.code(), error.details() or "") from error
            await asyncio.sleep(_POLL_S)
        return False

    async def _describe(self) -> EngineDescription:
        try:
            server = await self._stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=_CALL_TIMEOUT_S)
            name = self._settings.model_name or await self._find_model()
            metadata = await self._stub.ModelMetadata(
                service_pb2.ModelMetadataRequest(name=name), timeout=_CALL_TIMEOUT_S
            )
            config = await self._stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise failure(error.code(), error.details() or "") from error
        self._model = ServedModel.of(metadata, config.config)
        limits, settings = self._model.limits, self._settings
        self._context_tokens = limits.get("context_tokens", settings.context_tokens)
        return EngineDescription(
            engine="triton",
            version=server.version,
            sequences_max=limits.get("sequences_max", settings.sequences_max),
            kv_capacity_tokens=limits.get("kv_capacity_tokens", settings.kv_capacity_tokens),
            context_tokens=self._context_tokens,
            prefix_cache=self._server is not None or settings.prefix_cache,
            direct=DirectWay(
                engine_pb2.DIALECT_TRITON,
                self.address,
                self._model.name,
                described(self._model, self._template, status_errors=self._server is None),
            ),
        )

    async def _find_model(self) -> str:
        index = await self._stub.RepositoryIndex(
            service_pb2.RepositoryIndexRequest(ready=True), timeout=_CALL_TIMEOUT_S
        )
        ready = {model.name for model in index.models}
        for name in KNOWN_MODELS:
            if name in ready:
                return name
        listed = ", ".join(sorted(ready)) or "none"
        raise UnavailableError(
            f"No model named {', '.join(KNOWN_MODELS)} is ready on the server (ready: {listed}); set model_name.",
            reason=Reason.ENGINE_MISSING,
        )


async def _send(call: Any, message: Any) -> None:
    try:
        await call.write(message)
        await call.done_writing()
    except asyncio.InvalidStateError:
        pass  # the call has failed already; reading from it tells why


def _metadata(traceparent: str, *, own_server: bool) -> tuple[tuple[str, str], ...]:
    # With it errors inside a stream end the stream with a status. Our own server goes without: its backend says whom to
    # blame, and ending streams by status takes the path on which Triton before 25.05 can crash (a race in its
    # cancellation, NVIDIA's issues 7368 and 8034).
    grpc_errors = () if own_server else (("triton_grpc_error", "true"),)
    # Triton traces every request that brings a context, sampled or not, so only a sampled one is handed on.
    return (*grpc_errors, ("traceparent", traceparent)) if _SAMPLED.fullmatch(traceparent) else grpc_errors


def _template(settings: TritonSettings) -> ChatTemplate:
    directory = settings.model_directory or (None if settings.endpoint else TINY_MODEL)
    return ChatTemplate.of_model(directory) if directory else ChatTemplate("")


def _model_spec(settings: TritonSettings) -> ModelSpec:
    return ModelSpec(
        dialect=settings.dialect,
        model_directory=settings.model_directory or TINY_MODEL,
        threads=settings.threads,
        sequences_max=settings.sequences_max,
        kv_tokens=settings.kv_capacity_tokens,
        stream_interval_ms=settings.stream_interval_ms,
    )


def _server_settings(settings: TritonSettings) -> ServerSettings:
    return ServerSettings(
        environment=settings.environment,
        repository=settings.work_directory / "repository",
        log_file=settings.work_directory / "triton.log",
        otlp_traces_url=settings.otlp_traces_url,
    )
