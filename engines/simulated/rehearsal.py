"""A load on a simulated replica in virtual time: what would take the replica minutes is known in a moment."""

from __future__ import annotations

import heapq

from engines.simulated import host
from engines.simulated.closed_loop import ClosedLoop
from engines.simulated.hardware import Hardware
from engines.simulated.step_machine import StepMachine
from engines.simulated.work import EventKind, SchedulerLimits, Work
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
    arrivals: list[tuple[float, int, int, int, int]] = []  # (when, number, stream, input, output)
    stream_of: dict[str, int] = {}
    number = 0
    for stream, (read, made) in enumerate(loop.begin()):
        number += 1
        arrivals.append((host.INGEST_S, number, stream, read, made))
    while not loop.done:
        next_s = machine.next_event_s()
        arrival_s = arrivals[0][0] if arrivals else None
        now_s = min(each for each in (next_s, arrival_s, load.time_max_s) if each is not None)
        for event in machine.advance(now_s):
            stream = stream_of[event.request_id]
            seen_s = event.time_s + host.TOKEN_S
            if event.kind is EventKind.FIRST_TOKEN:
                if loop.at_boundary(seen_s):
                    for request_id, produced in machine.progress():
                        if request_id != event.request_id:
                            loop.progress(stream_of[request_id], produced)
                loop.first_token(stream, seen_s)
            elif event.kind is EventKind.FINISHED:
                read, made = loop.ended(stream, seen_s + host.FINISH_S)
                number += 1
                again_s = seen_s + host.FINISH_S + host.INGEST_S
                heapq.heappush(arrivals, (again_s, number, stream, read, made))
        if machine.now_s >= load.time_max_s and not loop.done:
            loop.stop(max(machine.now_s, now_s))
        while arrivals and arrivals[0][0] <= now_s:
            _, made_number, stream, read, made = heapq.heappop(arrivals)
            request_id = str(made_number)
            stream_of[request_id] = stream
            machine.add(Work(request_id, read, made))
    return loop.result(machine.now_s)
