"""A load on a simulated replica in virtual time: what would take the replica minutes is known in a moment."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence

from engines.simulated import host
from engines.simulated.closed_loop import ClosedLoop
from engines.simulated.hardware import Hardware
from engines.simulated.step_machine import StepMachine
from engines.simulated.work import Event, EventKind, SchedulerLimits, Work
from model_units.calibration.load import LoadResult, LoadSpec


def rehearse(
    hardware: Hardware, load: LoadSpec, limits: SchedulerLimits | None = None, *, slow_factor: float = 1.0
) -> LoadResult:
    """Puts a load on a machine of its own and measures it, as a client of the replica would.

    Args:
        hardware: Step times and KV capacity.
        load: The load; prompts share nothing.
        limits: Scheduler limits.
        slow_factor: Every step takes this many times as long.

    Raises:
        ValueError: A request is larger than the KV cache.
    """
    machine = StepMachine(hardware, limits)
    machine.slow_factor = slow_factor
    loop = ClosedLoop(load, 0.0)
    arrivals = [(host.INGEST_S, number, number, *lengths) for number, lengths in enumerate(loop.begin())]
    numbers = itertools.count(len(arrivals))  # an arrival is (when, number, stream, input, output)
    stream_of: dict[str, int] = {}
    while not loop.done:
        next_s = machine.next_event_s()
        arrival_s = arrivals[0][0] if arrivals else None
        now_s = min(each for each in (next_s, arrival_s, load.time_max_s) if each is not None)
        events = machine.advance(now_s)
        for event in events:
            stream = stream_of[event.request_id]
            seen_s = event.time_s + host.TOKEN_S
            if event.kind is EventKind.FIRST_TOKEN:
                if loop.at_boundary(seen_s):
                    _report(machine, loop, stream_of, events)
                loop.first_token(stream, seen_s)
            elif event.kind is EventKind.FINISHED:
                read, made = loop.ended(stream, seen_s + host.FINISH_S)
                again_s = seen_s + host.FINISH_S + host.INGEST_S
                heapq.heappush(arrivals, (again_s, next(numbers), stream, read, made))
        if machine.now_s >= load.time_max_s and not loop.done:
            _report(machine, loop, stream_of, ())
            loop.stop(machine.now_s)
        while arrivals and arrivals[0][0] <= now_s:
            _, number, stream, read, made = heapq.heappop(arrivals)
            stream_of[str(number)] = stream
            machine.add(Work(str(number), read, made))
    return loop.result(machine.now_s)


def _report(machine: StepMachine, loop: ClosedLoop, stream_of: Mapping[str, int], events: Sequence[Event]) -> None:
    """Reports the tokens up to a step with these events; its first tokens report themselves."""
    begun = {event.request_id for event in events if event.kind is EventKind.FIRST_TOKEN}
    for request_id, produced in machine.progress():
        if request_id not in begun:
            loop.progress(stream_of[request_id], produced)
    for event in events:
        if event.kind is EventKind.FINISHED and event.request_id not in begun:
            loop.all_produced(stream_of[event.request_id])
