"""What every source of load becomes: a stream of requests for the simulator, sorted by arrival."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InvalidArgumentError

REQUESTS_MAX: Final = 3_000_000
"""Most requests of one workload, so that a week of a large service cannot fill the memory."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request of a simulation.

    Attributes:
        arrival_s: Seconds after the beginning of the workload, 0 or more.
        client: Who sends it; empty where the source does not say.
        input_tokens: Prompt length with the tokens of images and other media, 1 or more.
        output_tokens: Answer length, 1 or more.
        prefix: Ids of the prompt's leading blocks of 512 tokens, front first; equal ids mean an equal prefix up to
            there. Empty where the source does not say.
        images: Images in the prompt.
    """

    arrival_s: float
    client: str
    input_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    images: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """A stream of requests.

    Attributes:
        name: The file it came from.
        requests: Sorted by arrival, at least one.
        notes: What was assumed, put right or filled in, one sentence each.
        clients: Everybody who sends something, the one with most requests first.
        duration_s: Length of the part it stands for, seconds: requests over this is the mean rate.
    """

    name: str
    requests: tuple[SimRequest, ...]
    notes: tuple[str, ...]
    clients: tuple[str, ...]
    duration_s: float

    @property
    def requests_per_s(self) -> float:
        """Mean rate."""
        return len(self.requests) / self.duration_s


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a source is wanted, and how dense.

    Attributes:
        seed: Of everything that is drawn, 0 or more. The same seed gives the same requests, and a longer or later part
            agrees with a shorter one where they overlap (for sources with rates).
        start_s: Where to begin, seconds after the source's beginning, in its own time.
        duration_s: Length of the workload, seconds; to the source's end when None.
        rate_scale: Factor on all rates, above 0; everybody keeps his share.
        requests_per_s: Mean rate wanted instead of the source's own, times `rate_scale`; the source's own when None.
    """

    seed: int = 1
    start_s: float = 0.0
    duration_s: float | None = None
    rate_scale: float = 1.0
    requests_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InvalidArgumentError("seed must be 0 or more", field="seed")
        if not 0 <= self.start_s < math.inf:
            raise InvalidArgumentError("start_s must be 0 or more seconds", field="start_s")
        for name in ("duration_s", "rate_scale", "requests_per_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidArgumentError(f"{name} must be above 0", field=name)

    def stream(self, *names: str | int) -> np.random.Generator:
        """A generator of its own for each thing that is drawn for, so that one does not move another."""
        keys = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
        return np.random.default_rng([self.seed, *keys])

    def end_s(self, source_end_s: float, name: str) -> float:
        """Where the part ends, in the source's own time; refuses a part beyond the source."""
        if self.start_s >= source_end_s:
            raise InvalidArgumentError(
                f"{name} ends {source_end_s:g} s after its beginning: nothing from {self.start_s:g} s on",
                field="start_s",
            )
        return source_end_s if self.duration_s is None else min(source_end_s, self.start_s + self.duration_s)

    def factor(self, own_requests_per_s: float) -> float:
        """What to multiply a source's rates by."""
        if self.requests_per_s is None:
            return self.rate_scale
        return self.rate_scale * self.requests_per_s / own_requests_per_s


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of one client as arrays of equal length, in any order."""

    client: str
    arrivals_s: Floats
    inputs: Ints
    outputs: Ints
    images: Ints | None = None

    def between(self, start_s: float, end_s: float) -> Batch:
        """Those that arrive in a span, with times from its beginning."""
        keep = (self.arrivals_s >= start_s) & (self.arrivals_s < end_s)
        images = None if self.images is None else self.images[keep]
        return Batch(self.client, self.arrivals_s[keep] - start_s, self.inputs[keep], self.outputs[keep], images)


def check_size(expected: float, name: str) -> None:
    """Refuses a workload that would not fit the memory, before anything is drawn.

    Raises:
        InvalidArgumentError: It has more than REQUESTS_MAX requests.
    """
    if expected > REQUESTS_MAX:
        raise InvalidArgumentError(
            f"this part of {name} has about {expected:,.0f} requests, more than {REQUESTS_MAX:,}: "
            "take a shorter duration_s or a smaller rate_scale",
            field="duration_s",
        )


def workload_of(name: str, batches: Iterable[Batch], notes: Sequence[str], duration_s: float) -> Workload:
    """Puts the requests of all clients into one stream.

    Raises:
        InvalidArgumentError: There are none.
    """
    requests = [
        SimRequest(*row[:1], batch.client, *row[1:3], images=row[3])
        for batch in batches
        for row in zip(
            batch.arrivals_s.tolist(),
            batch.inputs.tolist(),
            batch.outputs.tolist(),
            [0] * len(batch.arrivals_s) if batch.images is None else batch.images.tolist(),
            strict=True,
        )
    ]
    requests.sort(key=lambda request: request.arrival_s)
    return finished(name, requests, notes, duration_s)


def finished(name: str, requests: Sequence[SimRequest], notes: Sequence[str], duration_s: float) -> Workload:
    """A workload of sorted requests.

    Raises:
        InvalidArgumentError: There are none.
    """
    if not requests:
        raise InvalidArgumentError(f"no request of {name} falls into this part: take a longer one", field="duration_s")
    counts = Counter(request.client for request in requests)
    clients = sorted(counts, key=lambda client: (-counts[client], client))
    return Workload(name, tuple(requests), tuple(notes), tuple(clients), duration_s)


def whole_tokens(lengths: Floats) -> Ints:
    """Lengths as whole tokens, at least 1."""
    whole: Ints = np.maximum(np.rint(lengths), 1).astype(np.int64)
    return whole
