"""One replica in virtual time for tests: the agent's admission queue, the host's latencies and the step machine."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from engines.agent.core.queue import AdmissionQueue, Priority, QueueLimits, Ticket
from engines.simulated.hardware import Hardware
from engines.simulated.host import FINISH_S, INGEST_S, TOKEN_S
from engines.simulated.step_machine import StepMachine
from engines.simulated.work import EventKind, SchedulerLimits, Work


@dataclass(frozen=True)
class Served:
    """What the client of one request saw.

    Attributes:
        arrival_s: When it asked.
        first_s: When its first token came.
        end_s: When the answer ended.
        output_tokens: How long it was.
    """

    arrival_s: float
    first_s: float
    end_s: float
    output_tokens: int

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first."""
        return (self.end_s - self.first_s) / max(1, self.output_tokens - 1)


def serve_virtually(hardware: Hardware, limits: SchedulerLimits, asked: Iterable[tuple[float, Work]]) -> list[Served]:
    """Serves requests on one replica.

    Args:
        hardware: Its step times.
        limits: Its scheduler.
        asked: When each request arrives, and what it is; their ids are unique.

    Returns:
        What each client saw, in the order of `asked`.
    """
    machine = StepMachine(hardware, limits)
    queue = AdmissionQueue(QueueLimits(10_000, limits.sequences_max, hardware.kv_capacity_tokens))
    requests = {work.request_id: (arrival_s, work) for arrival_s, work in asked}
    first_s: dict[str, float] = {}
    end_s: dict[str, float] = {}
    numbers = itertools.count()
    plan = [(arrival_s, next(numbers), "arrive", name) for name, (arrival_s, _) in requests.items()]
    heapq.heapify(plan)
    while plan or machine.busy:
        next_s = machine.next_event_s()
        due = bool(plan) and (next_s is None or plan[0][0] <= next_s)
        now_s = plan[0][0] if due or next_s is None else next_s
        for event in machine.advance(now_s):
            if event.kind is EventKind.FIRST_TOKEN:
                first_s[event.request_id] = event.time_s + TOKEN_S
            elif event.kind is EventKind.FINISHED:
                end_s[event.request_id] = event.time_s + FINISH_S
                heapq.heappush(plan, (end_s[event.request_id], next(numbers), "leave", event.request_id))
        if not due:
            continue
        _, _, what, name = heapq.heappop(plan)
        work = requests[name][1]
        if what == "join":
            machine.add(work)
            continue
        if what == "arrive":
            queue.offer(Ticket(name, Priority(work.priority), work.input_tokens + work.output_tokens))
        else:
            queue.leave(name)
        for ticket in queue.admit():
            heapq.heappush(plan, (now_s + INGEST_S, next(numbers), "join", ticket.request_id))
    return [
        Served(arrival_s, first_s[name], end_s[name], work.output_tokens)
        for name, (arrival_s, work) in requests.items()
    ]
