"""The traffic of one tenant: a recorded workload, shifted, sped up and repeated as needed, or a synthetic one."""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from random import Random
from typing import NamedTuple

from fairlead.errors import InvalidArgumentError
from fairlead.replay.traces import DEFAULT_TRACE
from model_units.cost import CostProfile, cost
from simulation.scenario import CHAT, EXCERPT, SYNTHETIC, TenantSpec
from simulation.sessions import ChatTerms, Conversation, openings, sampled
from simulation.shape import Shape, shape_of
from simulation.traces import REQUESTS_MAX, Kind, SimRequest, Workload, open_workload, recognise

# Requests looked at to learn what a workload costs per request.
_SAMPLES = 2_000
_SESSION_SAMPLES = 300
_SYNTHETIC_TOKENS_MAX = 100_000
_SAMPLE_S, _SAMPLE_RATE = 600.0, 3.0

_RECORDED = frozenset({Kind.REQUESTS, Kind.PREFIXED_REQUESTS})
_RATELESS = frozenset({Kind.LENGTHS, Kind.QUANTILES})


class Arrival(NamedTuple):
    """One request to come.

    Attributes:
        at_s: When, seconds after the beginning.
        input_tokens: Its prompt.
        output_tokens: What it will produce.
        client: Who sends it; empty where nobody says.
        prefix: Ids of its prompt's leading blocks.
        conversation: Says what comes after it, where it is a turn of a session.
    """

    at_s: float
    input_tokens: int
    output_tokens: int
    client: str = ""
    prefix: tuple[int, ...] = ()
    conversation: Conversation | None = None


class Workloads:
    """Recorded workloads by name, each read once.

    Args:
        folder: Where trace files are; None where there are none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._read: dict[str, Workload] = {}

    def path(self, name: str) -> Path:
        """Where a workload is.

        Raises:
            InvalidArgumentError: There is no such file.
        """
        if name == EXCERPT:
            return Path(str(resources.files("fairlead") / "data" / DEFAULT_TRACE))
        path = Path(name) if self._folder is None else self._folder / name
        if not path.is_file():
            where = f"in {self._folder}" if self._folder else "here; name their folder with --traces"
            raise InvalidArgumentError(
                f"there is no workload {name!r} {where}; use a trace file's name, {EXCERPT}, {SYNTHETIC} or {CHAT}",
                field="workload",
            )
        return path

    def put(self, name: str, workload: Workload) -> None:
        """Gives a workload that was made elsewhere a name."""
        self._read[name] = workload

    def drawn(self, name: str) -> Path | None:
        """The file of a workload that is drawn from statistics; None for one of recorded requests."""
        if name in self._read:
            return None
        path = self.path(name)
        return None if recognise(path) in _RECORDED else path

    def recorded(self, name: str) -> Workload:
        """All of a recorded workload."""
        if name not in self._read:
            self._read[name] = open_workload(self.path(name))
        return self._read[name]


Note = Callable[[Iterable[str]], None]
"""Is told what was assumed, put right or filled in of a workload, one sentence each."""


def traffic(
    spec: TenantSpec,
    workloads: Workloads,
    random: Random,
    profile: CostProfile,
    capacity: int,
    duration_s: float,
    note: Note,
) -> Iterator[Arrival]:
    """A tenant's requests in order of arrival, without end or up to `end_s`.

    Args:
        spec: The tenant.
        workloads: Where recorded ones come from.
        random: Draws a synthetic one; salts the prefixes of a recorded one, which nobody else shares.
        profile: Prices it, where the tenant says how much load it is.
        capacity: What its model's replicas serve at the start, mMU per minute.
        duration_s: How long traffic is needed.
        note: Told what there is to say of its workload, before the first request.

    Raises:
        InvalidArgumentError: Its workload cannot be had, has no request of its client, or would be endless work.
    """
    shape = shape_of(spec, lambda: Random(random.getrandbits(64)), duration_s)
    if spec.workload in (SYNTHETIC, CHAT):
        rate = spec.requests_per_s
        if spec.load:
            rate = _requests_per_s(spec.load, capacity, profile, _sampled(spec))
        _check_rate(spec, rate, duration_s, shape)
        if spec.workload == CHAT:
            return _bounded(_chat(spec, rate, random, shape), spec)
        return _bounded(_shaped(_synthetic(spec, rate, random), shape), spec)
    path = workloads.drawn(spec.workload)
    if path is not None:
        needed_s = duration_s if shape is None else shape.work_s(duration_s)
        drawn = _drawn(spec, path, random, profile, capacity, needed_s, note)
        return _bounded(_shaped(drawn, shape), spec)
    workload = workloads.recorded(spec.workload)
    requests = _of_client(workload, spec)
    scale = spec.rate_scale
    if spec.load:
        every = max(1, len(requests) // _SAMPLES)
        rate = _requests_per_s(spec.load, capacity, profile, tuple(_pair(each) for each in requests[::every]))
        scale = rate * workload.duration_s / len(requests)
    _check_rate(spec, len(requests) / workload.duration_s * scale, duration_s, shape)
    note([*workload.notes, *_played(workload, scale, spec, duration_s)])
    salt = random.getrandbits(60)
    played = _repeated(requests, workload.duration_s, scale, spec.offset_s, salt)
    return _bounded(_shaped(played, shape), spec)


def _shaped(arrivals: Iterator[Arrival], shape: Shape | None) -> Iterator[Arrival]:
    return arrivals if shape is None else shape.apply(arrivals)


def _sampled(spec: TenantSpec) -> tuple[tuple[int, int], ...]:
    """Lengths of a workload that is made up; tenants of one entry differ in their names and times alone."""
    if spec.workload == CHAT:
        like = (spec.turns, spec.system_tokens)
        return _sample_of_chat(spec.input_tokens, spec.input_sigma, spec.output_tokens, spec.output_sigma, *like)
    return _sample(spec.input_tokens, spec.input_sigma, spec.output_tokens, spec.output_sigma)


def _drawn(
    spec: TenantSpec, path: Path, random: Random, profile: CostProfile, capacity: int, duration_s: float, note: Note
) -> Iterator[Arrival]:
    """Requests drawn from published statistics: as many as the run needs."""
    seed = random.getrandbits(31)
    kind = recognise(path)
    rate = spec.requests_per_s if kind in _RATELESS else None
    if spec.load:
        sample = open_workload(
            path, seed=seed, start_s=spec.offset_s, duration_s=_SAMPLE_S, requests_per_s=_SAMPLE_RATE
        )
        requests = _of_client(sample, spec)
        rate = _requests_per_s(spec.load, capacity, profile, tuple(_pair(each) for each in requests))
        rate *= len(sample.requests) / len(requests)
    scale = 1.0 if spec.load else spec.rate_scale
    workload = open_workload(
        path, seed=seed, start_s=spec.offset_s, duration_s=duration_s, rate_scale=scale, requests_per_s=rate
    )
    note(workload.notes)
    for each in _of_client(workload, spec):
        yield Arrival(each.arrival_s, each.input_tokens, each.output_tokens, each.client, each.prefix)


def _played(workload: Workload, scale: float, spec: TenantSpec, duration_s: float) -> Iterator[str]:
    """What playing a recording in a run does to it."""
    if scale != 1.0:
        yield f"recorded time runs {scale:.3g} times as fast, which scales the rate"
    active_s = min(spec.end_s or duration_s, duration_s) - spec.start_s
    if spec.offset_s % workload.duration_s + active_s * scale > workload.duration_s:
        yield f"after {workload.duration_s:,.0f} recorded seconds the recording begins again"


def _of_client(workload: Workload, spec: TenantSpec) -> Sequence[SimRequest]:
    if not spec.client:
        return workload.requests
    requests = [each for each in workload.requests if each.client == spec.client]
    if not requests:
        raise InvalidArgumentError(
            f"tenant {spec.id!r}: no client {spec.client!r} in workload {workload.name!r}", field="client"
        )
    return requests


def _check_rate(spec: TenantSpec, requests_per_s: float, duration_s: float, shape: Shape | None) -> None:
    """Refuses traffic of more requests than a run can take, before the first of them."""
    active_s = max(0.0, min(spec.end_s or duration_s, duration_s) - spec.start_s)
    if shape is not None:
        active_s = shape.work_s(active_s)
    expected = requests_per_s * active_s
    if expected > REQUESTS_MAX:
        made_up = spec.workload in (SYNTHETIC, CHAT)
        knob = "load" if spec.load else "requests_per_s" if made_up else "rate_scale"
        raise InvalidArgumentError(
            f"tenant {spec.id!r} would send about {expected:,.0f} requests ({requests_per_s:,.4g} per second for "
            f"{active_s:g} s), more than {REQUESTS_MAX:,}: take a smaller {knob} or a shorter duration_s, or share the "
            "traffic among several tenants",
            field=knob,
        )


def _pair(request: SimRequest) -> tuple[int, int]:
    return request.input_tokens, request.output_tokens


def _bounded(arrivals: Iterator[Arrival], spec: TenantSpec) -> Iterator[Arrival]:
    for arrival in arrivals:
        at_s = spec.start_s + arrival.at_s
        if spec.end_s and at_s >= spec.end_s:
            return
        yield arrival._replace(at_s=at_s) if spec.start_s else arrival


def _requests_per_s(load: float, capacity: int, profile: CostProfile, lengths: tuple[tuple[int, int], ...]) -> float:
    return load * capacity / 60.0 * len(lengths) / _total_milli_mu(profile, lengths)


@functools.lru_cache(maxsize=64)
def _total_milli_mu(profile: CostProfile, lengths: tuple[tuple[int, int], ...]) -> int:
    """Kept, because thousands of tenants play a few workloads."""
    return sum(cost(profile, input_tokens=read, output_tokens=made).total_milli_mu for read, made in lengths)


def _repeated(
    recorded: Sequence[SimRequest], span_s: float, scale: float, offset_s: float, salt: int
) -> Iterator[Arrival]:
    offset_s %= span_s
    at = bisect_left(recorded, offset_s, key=lambda each: each.arrival_s)
    base_s, turn = -offset_s, 0
    while True:
        for arrival in recorded[at:]:
            prefix = arrival.prefix
            if prefix:
                own = salt ^ turn << 60  # in another turn or for another tenant the same ids are other prompts
                prefix = tuple([own ^ block for block in prefix])
            yield Arrival(
                (base_s + arrival.arrival_s) / scale,
                arrival.input_tokens,
                arrival.output_tokens,
                arrival.client,
                prefix,
            )
        at, base_s, turn = 0, base_s + span_s, turn + 1


def _synthetic(spec: TenantSpec, rate: float, random: Random) -> Iterator[Arrival]:
    at_s = 0.0
    while True:
        at_s += random.expovariate(rate)
        read, made = _lengths(spec.input_tokens, spec.input_sigma, spec.output_tokens, spec.output_sigma, random)
        yield Arrival(at_s, read, made)


def _chat(spec: TenantSpec, rate: float, random: Random, shape: Shape | None) -> Iterator[Arrival]:
    terms = ChatTerms.of(spec, random.getrandbits(60))
    for at_s, turn, conversation in openings(terms, rate / spec.turns, random, shape):
        yield Arrival(at_s, turn.input_tokens, turn.output_tokens, f"{conversation.seed:x}", turn.prefix, conversation)


@functools.lru_cache(maxsize=64)
def _sample_of_chat(
    input_tokens: int, input_sigma: float, output_tokens: int, output_sigma: float, turns: float, system_tokens: int
) -> tuple[tuple[int, int], ...]:
    """The same of a chat, over all turns of some sessions."""
    spec = TenantSpec(
        id="sample",
        input_tokens=input_tokens,
        input_sigma=input_sigma,
        output_tokens=output_tokens,
        output_sigma=output_sigma,
        turns=turns,
        system_tokens=system_tokens,
    )
    return sampled(spec, _SESSION_SAMPLES)


@functools.lru_cache(maxsize=64)
def _sample(
    input_tokens: int, input_sigma: float, output_tokens: int, output_sigma: float
) -> tuple[tuple[int, int], ...]:
    """Lengths as a synthetic workload draws them, always the same ones."""
    random = Random(1)
    return tuple(_lengths(input_tokens, input_sigma, output_tokens, output_sigma, random) for _ in range(_SAMPLES))


def _lengths(
    input_tokens: int, input_sigma: float, output_tokens: int, output_sigma: float, random: Random
) -> tuple[int, int]:
    read = input_tokens * math.exp(random.gauss(0.0, input_sigma))
    made = output_tokens * math.exp(random.gauss(0.0, output_sigma))
    return _tokens(read), _tokens(made)


def _tokens(number: float) -> int:
    return min(_SYNTHETIC_TOKENS_MAX, max(1, round(number)))
