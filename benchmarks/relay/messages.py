"""The bodies that load and mock engine send: made by the platform's own stubs, written to files for the C programs."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final

from tritonclient.grpc import service_pb2

from fairlead.engine.v1 import engine_pb2
from fairlead.inference.v1 import inference_pb2 as pb

MODEL: Final = "bench"
"""On replicas whose agents speak EngineService."""
TRITON_MODEL: Final = "bench-triton"
OPENAI_MODEL: Final = "bench-openai"
EVENTS_BEYOND_TOKENS: Final = 3
"""Of an SSE answer: finish reason, usage, [DONE]."""

_TOKEN: Final = " token"
_WORDS: Final = 26
_INPUT_TOKENS: Final = 32
_ENVELOPE: Final = {"object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL}
_ID: Final = "chatcmpl-0123456789abcdef0123456789abcdef"


def prompt(tokens: int, interval_us: int) -> str:
    """What asks the mock engine for so many tokens so far apart."""
    return f"#N={tokens},I={interval_us}# " + "word " * _WORDS


def framed(message: Any) -> bytes:
    """A gRPC message with its prefix."""
    body: bytes = message.SerializeToString()
    return b"\0" + struct.pack(">I", len(body)) + body


def generate(model: str, tokens: int, interval_us: int, *, chat: bool = False) -> bytes:
    """The body of InferenceService's methods, with its prefix."""
    request = pb.GenerateRequest(model=model)
    request.sampling.max_tokens = tokens
    request.sampling.temperature = 0.7
    if chat:
        request.chat.messages.add(role="user", content=prompt(tokens, interval_us))
    else:
        request.prompt = prompt(tokens, interval_us)
    return framed(request)


def chat(model: str, tokens: int, interval_us: int, *, stream: bool = True) -> bytes:
    """The body of POST /v1/chat/completions."""
    messages = [{"role": "user", "content": prompt(tokens, interval_us)}]
    body = {"model": model, "stream": stream, "max_tokens": tokens, "temperature": 0.7, "messages": messages}
    return json.dumps(body, separators=(",", ":")).encode()


def write_templates(folder: Path) -> None:
    """Writes what the mock engine answers with, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = pb.GenerateResponse(request_id="0123456789abcdef", model=MODEL, text=_TOKEN, replica_id="replica-1")
    whole.finish_reason = pb.FINISH_REASON_LENGTH
    whole.usage.input_tokens, whole.usage.output_tokens = _INPUT_TOKENS, 1
    files = {
        "piece": engine_pb2.EngineGenerateResponse(text=_TOKEN, output_tokens=1).SerializeToString(),
        "unary": whole.SerializeToString(),
        "triton_token": _triton(final=False).SerializeToString(),
        "triton_last": _triton(final=True).SerializeToString(),
        "sse_first": _event({"role": "assistant", "content": _TOKEN}),
        "sse_token": _event({"content": _TOKEN}),
        "sse_last": _event({}, finish="length") + _usage() + b"data: [DONE]\n\n",
        "json": _answer(),
        "models": _models(),
    }
    for name, body in files.items():
        (folder / name).write_bytes(body)


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _line({"id": _ID, **_ENVELOPE, "choices": [choice]})


def _line(body: object) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _usage() -> bytes:
    """The usage chunk; %TOKENS% is filled in by the mock, which knows how many there were."""
    usage = {"prompt_tokens": _INPUT_TOKENS, "total_tokens": _INPUT_TOKENS, "completion_tokens": "%TOKENS%"}
    return _line({"id": _ID, **_ENVELOPE, "choices": [], "usage": usage}).replace(b'"%TOKENS%"', b"%TOKENS%")


def _answer() -> bytes:
    message = {"role": "assistant", "content": _TOKEN}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    usage = {"prompt_tokens": _INPUT_TOKENS, "completion_tokens": 1, "total_tokens": _INPUT_TOKENS + 1}
    body = {"id": _ID, **_ENVELOPE, "object": "chat.completion", "choices": [choice], "usage": usage}
    return json.dumps(body).encode()


def _models() -> bytes:
    model = {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "bench", "max_model_len": 131_072}
    return json.dumps({"object": "list", "data": [model]}).encode()


def _triton(*, final: bool) -> Any:
    """One token as TensorRT-LLM's ensemble streams it."""
    message = service_pb2.ModelStreamInferResponse()
    response = message.infer_response
    response.model_name, response.model_version, response.id = "ensemble", "1", "req-0123456789abcdef"
    response.parameters["triton_final_response"].bool_param = final
    text = _TOKEN.encode()
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(struct.pack("<I", len(text)) + text)
    return message
