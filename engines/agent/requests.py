"""One request through this replica, whoever brought it: observed, run, counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

from opentelemetry.context import Context

from common.shard_map import Generation
from engines.agent.assignments import AssignmentHolder
from engines.agent.dispatcher import Dispatcher
from engines.agent.job import Job
from engines.agent.metrics import AgentMetrics
from engines.agent.observed import Observer
from engines.agent.translate import engine_request, origin, priority
from engines.engine import TokenBatch
from fairlead.engine.v1 import engine_pb2
from fairlead.inference.v1 import inference_pb2


class Produced(NamedTuple):
    """A piece of an answer.

    Attributes:
        batch: What the engine produced.
        first: It holds the first token.
        output_tokens: All tokens so far.
    """

    batch: TokenBatch
    first: bool
    output_tokens: int

    @property
    def usage(self) -> inference_pb2.Usage:
        """The counts of the whole answer, where this is its last piece."""
        return inference_pb2.Usage(
            input_tokens=self.batch.input_tokens,
            cached_input_tokens=self.batch.cached_input_tokens,
            output_tokens=self.output_tokens,
        )


class Requests:
    """Serves requests.

    Args:
        model_id: The model this replica serves.
        dispatcher: Runs them.
        observer: Records each.
        assignments: The assignment held.
        metrics: Counts those that belong elsewhere.
    """

    def __init__(
        self,
        *,
        model_id: str,
        dispatcher: Dispatcher,
        observer: Observer,
        assignments: AssignmentHolder,
        metrics: AgentMetrics,
    ) -> None:
        self._model_id = model_id
        self._dispatcher = dispatcher
        self._observer = observer
        self._assignments = assignments
        self._metrics = metrics

    async def serve(self, request: engine_pb2.EngineGenerateRequest, parent: Context) -> AsyncGenerator[Produced, None]:
        """Serves a request. Closing the generator stops the work at once.

        Args:
            request: As a router wrote it.
            parent: Trace context of the caller.

        Yields:
            The answer; the last piece says why it ended.

        Raises:
            FairleadError: It was refused, or failed.
        """
        self._count_misrouted(request)
        with self._observer.observe(request, priority(request), parent) as notes:
            job = Job(
                engine_request(request, self._model_id, notes.traceparent),
                tenant_id=request.tenant_id,
                prefill_milli_mu=request.prefill_milli_mu,
                decode_milli_mu=request.decode_milli_mu,
                weight=request.weight,
                origin=origin(request),
                on_admitted=notes.admitted,
            )
            async with aclosing(self._dispatcher.run(job)) as stream:
                async for batch in stream:
                    first = notes.batch(batch)
                    yield Produced(batch, first, notes.output_tokens)

    def _count_misrouted(self, request: engine_pb2.EngineGenerateRequest) -> None:
        generation = Generation.of(request.assignment) if request.HasField("assignment") else None
        why = self._assignments.misrouting(request.shard_key, generation)
        if why is not None:
            self._metrics.misrouted.labels(why).inc()
