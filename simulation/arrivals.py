"""The traffic of one tenant: a recorded workload, shifted, sped up and repeated as needed, or a synthetic one."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from fairlead.errors import InvalidArgumentError
from fairlead.replay import read_trace
from model_units.cost import CostProfile, cost
from simulation.scenario import EXCERPT, SYNTHETIC, TenantSpec

# Requests looked at to learn what a workload costs per request.
_SAMPLES = 2_000
_SYNTHETIC_TOKENS_MAX = 100_000


class Arrival(NamedTuple):
    """One request to come.

    Attributes:
        at_s: When, seconds after the beginning.
        input_tokens: Its prompt.
        output_tokens: What it will produce.
        client: Who sends it; empty where nobody says.
        prefix: Ids of its prompt's leading blocks.
    """

    at_s: float
    input_tokens: int
    output_tokens: int
    client: str = ""
    prefix: tuple[int, ...] = ()


class Workloads:
    """Recorded workloads by name, each read once.

    Args:
        folder: Where trace files are; None where there are none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._read: dict[str, Sequence[Arrival]] = {}

    def get(self, name: str) -> Sequence[Arrival]:
        """A workload, sorted by arrival.

        Raises:
            InvalidArgumentError: There is no such file, or it is no trace.
        """
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def put(self, name: str, arrivals: Sequence[Arrival]) -> None:
        """Gives a workload made elsewhere a name."""
        self._read[name] = arrivals

    def _load(self, name: str) -> Sequence[Arrival]:
        if name == EXCERPT:
            return _arrivals(None)
        path = Path(name) if self._folder is None else self._folder / name
        if not path.is_file():
            where = f"in {self._folder}" if self._folder else "here; name their folder with --traces"
            raise InvalidArgumentError(
                f"there is no workload {name!r} {where}; use a trace file's name, {EXCERPT} or {SYNTHETIC}",
                field="workload",
            )
        return _arrivals(path)


def _arrivals(path: Path | None) -> list[Arrival]:
    trace = read_trace(path)
    return [
        Arrival(each.arrival_s, each.input_tokens, each.output_tokens, each.client, each.prefix_blocks)
        for each in trace.requests
    ]


def traffic(
    spec: TenantSpec, workloads: Workloads, random: Random, profile: CostProfile, capacity: int
) -> Iterator[Arrival]:
    """A tenant's requests in order of arrival, without end or up to `end_s`.

    Args:
        spec: The tenant.
        workloads: Where recorded ones come from.
        random: Draws a synthetic one; salts the prefixes of a recorded one, which nobody else shares.
        profile: Prices it, where the tenant says how much load it is.
        capacity: What its model's replicas serve at the start, mMU per minute.

    Raises:
        InvalidArgumentError: Its workload cannot be had or has no request of its client.
    """
    if spec.workload == SYNTHETIC:
        rate = spec.requests_per_s
        if spec.load:
            generator = Random(1)
            drawn = [_lengths(spec, generator) for _ in range(_SAMPLES)]
            rate = _requests_per_s(spec.load, capacity, profile, drawn)
        return _bounded(_synthetic(spec, rate, random), spec)
    recorded = [each for each in workloads.get(spec.workload) if not spec.client or each.client == spec.client]
    if not recorded:
        raise InvalidArgumentError(
            f"tenant {spec.id!r}: no client {spec.client!r} in workload {spec.workload!r}", field="client"
        )
    span_s = _span_s(recorded)
    scale = spec.rate_scale
    if spec.load:
        every = max(1, len(recorded) // _SAMPLES)
        lengths = [(each.input_tokens, each.output_tokens) for each in recorded[::every]]
        scale = _requests_per_s(spec.load, capacity, profile, lengths) * span_s / len(recorded)
    return _bounded(_repeated(recorded, span_s, scale, spec.offset_s, random.getrandbits(60)), spec)


def _bounded(arrivals: Iterator[Arrival], spec: TenantSpec) -> Iterator[Arrival]:
    for arrival in arrivals:
        at_s = spec.start_s + arrival.at_s
        if spec.end_s and at_s >= spec.end_s:
            return
        yield arrival._replace(at_s=at_s) if spec.start_s else arrival


def _span_s(recorded: Sequence[Arrival]) -> float:
    """Length of a workload: up to its last arrival and one mean gap more, so that it can be repeated."""
    last_s = recorded[-1].at_s
    return last_s + (last_s / (len(recorded) - 1) if len(recorded) > 1 and last_s > 0 else 1.0)


def _requests_per_s(load: float, capacity: int, profile: CostProfile, lengths: Sequence[tuple[int, int]]) -> float:
    costs = [cost(profile, input_tokens=read, output_tokens=made).total_milli_mu for read, made in lengths]
    return load * capacity / 60.0 * len(costs) / sum(costs)


def _repeated(
    recorded: Sequence[Arrival], span_s: float, scale: float, offset_s: float, salt: int
) -> Iterator[Arrival]:
    offset_s %= span_s
    at = bisect_left(recorded, offset_s, key=lambda each: each.at_s)
    base_s, turn = -offset_s, 0
    while True:
        for arrival in recorded[at:]:
            prefix = arrival.prefix
            if prefix:
                own = salt ^ turn << 60  # in another turn or for another tenant the same ids are other prompts
                prefix = tuple([own ^ block for block in prefix])
            yield Arrival(
                (base_s + arrival.at_s) / scale, arrival.input_tokens, arrival.output_tokens, arrival.client, prefix
            )
        at, base_s, turn = 0, base_s + span_s, turn + 1


def _synthetic(spec: TenantSpec, rate: float, random: Random) -> Iterator[Arrival]:
    at_s = 0.0
    while True:
        at_s += random.expovariate(rate)
        read, made = _lengths(spec, random)
        yield Arrival(at_s, read, made)


def _lengths(spec: TenantSpec, random: Random) -> tuple[int, int]:
    read = spec.input_tokens * math.exp(random.gauss(0.0, spec.input_sigma))
    made = spec.output_tokens * math.exp(random.gauss(0.0, spec.output_sigma))
    return _tokens(read), _tokens(made)


def _tokens(number: float) -> int:
    return min(_SYNTHETIC_TOKENS_MAX, max(1, round(number)))
