"""The class Triton's Python backend loads: Triton's objects on one side, the step loop on the other."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import openvino_genai as genai
import triton_python_backend_utils as pb_utils

from .dialects import ENSEMBLE, LLMAPI, Ask, Part, read, write
from .step_loop import Failure, Job, LoopState, StepLoop

# Each update of a metric is a round trip to the server, so they are written at most this often, and when
# work begins or ends.
_METRICS_PERIOD_NS = 200_000_000
_FINISH = {genai.GenerationFinishReason.STOP: "stop", genai.GenerationFinishReason.LENGTH: "length"}
_SEED_BELOW = 2**64
# Triton's thread, which takes requests in, competes with the step loop for Python's global lock. With the usual 5 ms
# the first token of a request took 18 ms to arrive, with this it takes 5.
_SWITCH_INTERVAL_S = 0.0001


class TritonPythonModel:
    """One model instance: the pipeline and the thread that steps it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model.

        Args:
            args: From Triton; `model_config` is config.pbtxt as JSON.
        """
        config = json.loads(args["model_config"])
        values = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._dialect = values["dialect"]
        if self._dialect not in (ENSEMBLE, LLMAPI):
            raise pb_utils.TritonModelException(f"unknown dialect {self._dialect!r}")
        self._batched = int(config["max_batch_size"]) > 0
        self._context_tokens = int(values["context_tokens"])
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = int(values["sequences_max"])
        scheduler.max_num_batched_tokens = int(values["step_tokens_max"])
        scheduler.num_kv_blocks = int(values["kv_blocks"])
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        # OpenVINO 2026.4 divides by zero with 1 thread and bf16 on CPUs with AMX; f32 also makes the text of a greedy
        # request the same on every machine and in every batch.
        properties = {"INFERENCE_NUM_THREADS": int(values["threads"]), "INFERENCE_PRECISION_HINT": "f32"}
        self._pipeline = genai.ContinuousBatchingPipeline(
            values["model_directory"], scheduler, "CPU", properties, tokenizer_properties={"INFERENCE_NUM_THREADS": 1}
        )
        self._tokenizer = self._pipeline.get_tokenizer()
        self._metrics = _Metrics(config["name"], int(values["kv_capacity_tokens"]), self._pipeline)
        self._loop = StepLoop(
            self._pipeline,
            lambda windows: list(self._tokenizer.decode(windows)),
            lambda output: _FINISH.get(output.finish_reason, ""),
            pb_utils.Logger.log_error,
            self._metrics.after_step,
            # In the LLM API dialect a response stands for one token.
            stream_interval_ns=int(values["stream_interval_ms"]) * 1_000_000 if self._dialect == ENSEMBLE else 0,
        )
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._loop.start()

    def execute(self, requests: list[Any]) -> None:
        """Takes requests in; the responses come later, from the step loop."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._take(request, sender)
            except ValueError as error:
                _Reply(sender, self._dialect, None, self._batched).fail(Failure.INVALID_ARG, str(error))

    def finalize(self) -> None:
        """Ends the step loop."""
        self._loop.close()

    def _take(self, request: Any, sender: Any) -> None:
        ask = read(self._dialect, lambda name: _array(request, name))
        reply = _Reply(sender, self._dialect, ask, self._batched)
        if ask.cancels:
            self._loop.cancel(request.request_id())
            reply.fail(Failure.CANCELLED, "The request was cancelled.")
            return
        input_ids = self._tokenizer.encode(ask.prompt).input_ids
        input_tokens = int(input_ids.shape[1])
        if input_tokens >= self._context_tokens:
            raise ValueError(
                f"Prompt length ({input_tokens}) exceeds maximum input length ({self._context_tokens - 1})"
            )
        room = self._context_tokens - input_tokens
        config = _generation_config(ask, min(ask.max_tokens, room), self._tokenizer.get_eos_token_id())
        self._loop.submit(Job(request.request_id(), ask, input_ids, input_tokens, config, reply))


class _Reply:
    """Triton's response sender, spoken in one dialect."""

    def __init__(self, sender: Any, dialect: str, ask: Ask | None, batched: bool) -> None:
        self._sender = sender
        self._dialect = dialect
        self._ask = ask
        self._batched = batched

    def send(self, part: Part) -> None:
        assert self._ask is not None
        tensors = [
            pb_utils.Tensor(name, array.reshape(1, -1) if self._batched else array)
            for name, array in write(self._dialect, self._ask, part)
        ]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if part.finish else 0
        self._sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=flags)

    def fail(self, failure: Failure, message: str) -> None:
        # The code is in the text too, because an error inside a stream reaches the client without its code.
        error = pb_utils.TritonError(f"[{failure.value}] {message}", getattr(pb_utils.TritonError, failure.value))
        self._sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


class _Metrics:
    """The loop's counters on Triton's metrics endpoint."""

    def __init__(self, model: str, kv_capacity_tokens: int, pipeline: Any) -> None:
        kinds = {
            "steps_total": (pb_utils.MetricFamily.COUNTER, "Steps of the engine"),
            "tokens_total": (pb_utils.MetricFamily.COUNTER, "Tokens generated"),
            "requests": (pb_utils.MetricFamily.GAUGE, "Requests in the engine"),
            "kv_used_tokens": (pb_utils.MetricFamily.GAUGE, "KV cache in use, tokens"),
        }
        self._families = {
            name: pb_utils.MetricFamily(name=f"fairlead_engine_{name}", description=text, kind=kind)
            for name, (kind, text) in kinds.items()
        }
        self._metrics = {name: family.Metric(labels={"model": model}) for name, family in self._families.items()}
        self._kv_capacity_tokens = kv_capacity_tokens
        self._pipeline = pipeline
        self._written = LoopState(0, 0, 0)
        self._written_ns = 0

    def after_step(self, state: LoopState) -> None:
        now_ns = time.monotonic_ns()
        busy = state.jobs and self._written.jobs
        if busy and now_ns - self._written_ns < _METRICS_PERIOD_NS:
            return
        self._metrics["steps_total"].increment(state.steps - self._written.steps)
        self._metrics["tokens_total"].increment(state.tokens - self._written.tokens)
        self._metrics["requests"].set(state.jobs)
        used = self._pipeline.get_metrics().cache_usage / 100 if state.jobs else 0.0
        self._metrics["kv_used_tokens"].set(round(used * self._kv_capacity_tokens))
        self._written, self._written_ns = state, now_ns


def _array(request: Any, name: str) -> np.ndarray[Any, Any] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _generation_config(ask: Ask, max_new_tokens: int, end_token_id: int) -> Any:
    config = genai.GenerationConfig(max_new_tokens=max_new_tokens, ignore_eos=ask.ignore_end_token)
    config.eos_token_id = end_token_id
    config.min_new_tokens = min(ask.min_tokens, max_new_tokens)
    config.do_sample = ask.samples
    if ask.samples:
        config.temperature = 1.0 if ask.temperature is None else ask.temperature
        config.top_p = ask.top_p or 1.0
        if ask.top_k:
            config.top_k = ask.top_k
        # A request without a seed must not repeat itself: the engine's own default seed is a constant.
        config.rng_seed = time.time_ns() % _SEED_BELOW if ask.seed is None else ask.seed
    if ask.presence_penalty is not None:
        config.presence_penalty = ask.presence_penalty
    if ask.frequency_penalty is not None:
        config.frequency_penalty = ask.frequency_penalty
    if ask.repetition_penalty is not None:
        config.repetition_penalty = ask.repetition_penalty
    return config
