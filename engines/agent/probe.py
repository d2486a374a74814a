"""The end-to-end probe: a request like any other, at top priority, through the same queue and the same engine."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

from engines.agent.core.queue import Priority
from engines.agent.dispatcher import Dispatcher
from engines.agent.job import Job
from engines.engine import EngineRequest, Prompt, Sampling
from fairlead.errors import Reason, UnavailableError

# Two tokens: one out of prefill, one out of a decode step.
_JOB: Final = Job(
    EngineRequest(
        request_id="probe",
        prompt=Prompt("ping"),
        sampling=Sampling(max_tokens=2, temperature=0.0, ignore_end_token=True),
        priority=Priority.SYSTEM,
    )
)


async def probe(dispatcher: Dispatcher) -> None:
    """Asks the engine for two tokens and waits as long as it takes.

    Raises:
        FairleadError: It failed, or ended without a token.
    """
    tokens, finished = 0, False
    async with aclosing(dispatcher.run(_JOB, probe=True)) as stream:
        async for batch in stream:
            tokens += batch.output_tokens
            finished = batch.finish is not None
    if not finished or tokens < 1:
        raise UnavailableError(
            f"the probe ended after {tokens} tokens without a finish reason", reason=Reason.ENGINE_FAILED
        )
