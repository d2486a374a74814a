"""Steady traffic from a thread per tenant, and a record of what became of every request."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import fairlead
from fairlead.errors import FairleadError


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: when it ended (monotonic seconds), which replica served it, or why it failed."""

    ended_s: float
    replica_id: str
    failure: str


class Traffic:
    """Sends one short request after another through the SDK until it is left.

    Args:
        address: host:port of the published gRPC port.
        key: The tenant's API key.
        model: The model.
        workers: Requests in flight.
    """

    def __init__(self, address: str, key: str, model: str, *, workers: int = 3) -> None:
        self._client = fairlead.Client(address, api_key=key, deadline_s=20.0)
        self._model = model
        self._outcomes: list[Outcome] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(workers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30.0)
        self._client.close()

    def outcomes(self, since_s: float = 0.0) -> list[Outcome]:
        """Returns what ended at or after a moment."""
        return [outcome for outcome in list(self._outcomes) if outcome.ended_s >= since_s]

    def served(self, since_s: float = 0.0) -> int:
        """Counts the requests that got their whole answer at or after a moment."""
        return sum(not outcome.failure for outcome in self.outcomes(since_s))

    def _send(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._client.generate("The quick brown fox", model=self._model, max_tokens=24)
                outcome = Outcome(time.monotonic(), answer.replica_id, "")
            except FairleadError as error:
                outcome = Outcome(time.monotonic(), "", f"{error.reason.value}: {error.message}")
            self._outcomes.append(outcome)
            self._stop.wait(0.1)
