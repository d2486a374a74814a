"""Takes the times of requests while they run and turns each into a sample."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fairlead.errors import FairleadError, Reason
from fairlead.replay.report import Outcome, Sample, outcome_of
from fairlead.sdk.results import Generation


class Record:
    """One request under way.

    Args:
        sent_s: Monotonic time of its sending, seconds.
        now_s: Monotonic clock, seconds.
    """

    def __init__(self, sent_s: float, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._sent_s = sent_s
        self._first_s: float | None = None
        self._last_s = 0.0
        self._first_tokens = 0
        self.output_tokens = 0
        """Tokens that arrived so far."""
        self.generation: Generation | None = None
        """The whole answer, once it is there."""

    def piece(self, output_tokens: int) -> None:
        """Notes that a piece of so many tokens arrived now."""
        self._last_s = self._now_s()
        if self._first_s is None:
            self._first_s, self._first_tokens = self._last_s, output_tokens
        self.output_tokens += output_tokens

    def ended(self, generation: Generation) -> None:
        """Notes the whole answer."""
        self.generation = generation

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, seconds."""
        return None if self._first_s is None else self._first_s - self._sent_s

    @property
    def tpot_s(self) -> float | None:
        """Time per token after the first piece, seconds."""
        after = self.output_tokens - self._first_tokens
        return (self._last_s - self._first_s) / after if self._first_s is not None and after > 0 else None


class Recorder:
    """The samples of one tenant.

    Args:
        tenant: Name of the target.
    """

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        """Name of the target."""
        self.samples: list[Sample] = []
        """Ended requests."""
        self.ended: Counter[Outcome] = Counter()
        """Ended requests by outcome."""
        self.output_tokens = 0
        """Tokens of ended requests."""

    @contextmanager
    def record(self, request_id: str, due_s: float, now_s: Callable[[], float]) -> Iterator[Record]:
        """Records one request: errors of Fairlead end here, as samples.

        Args:
            request_id: Its id.
            due_s: Monotonic time at which it was due, seconds.
            now_s: Monotonic clock, seconds.
        """
        sent_s = now_s()
        record, lag_s = Record(sent_s, now_s), max(0.0, sent_s - due_s)
        try:
            yield record
        except asyncio.CancelledError:
            self._add(record, request_id, lag_s, Outcome.CANCELLED, Reason.CANCELLED.value)
            raise
        except FairleadError as error:
            self._add(record, request_id, lag_s, outcome_of(error), error.reason.value, error)
        else:
            self._add(record, request_id, lag_s, Outcome.OK, "")

    def _add(
        self,
        record: Record,
        request_id: str,
        lag_s: float,
        outcome: Outcome,
        reason: str,
        error: FairleadError | None = None,
    ) -> None:
        whole, facts = record.generation, error.metadata if error is not None else {}
        if outcome is Outcome.REFUSED:
            facts = {
                **facts,
                "estimated_milli_mu": "0",
            }  # a refusal names the price it was refused for: nothing is held
        known = whole is not None or outcome is Outcome.REFUSED or "settled_milli_mu" in facts
        self.samples.append(
            Sample(
                tenant=self.tenant,
                request_id=request_id,
                outcome=outcome,
                reason=reason,
                lag_s=lag_s,
                ttft_s=record.ttft_s,
                tpot_s=record.tpot_s,
                input_tokens=whole.usage.input_tokens if whole else 0,
                output_tokens=whole.usage.output_tokens if whole else record.output_tokens,
                estimated_milli_mu=whole.cost.estimated_milli_mu if whole else _number(facts, "estimated_milli_mu"),
                settled_milli_mu=whole.cost.settled_milli_mu if whole else _number(facts, "settled_milli_mu"),
                cost_known=known,
                attempts=whole.attempts if whole else max(1, _number(facts, "attempts")),
            )
        )
        self.ended[outcome] += 1
        self.output_tokens += self.samples[-1].output_tokens


def _number(facts: dict[str, str], name: str) -> int:
    text = facts.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else 0
