"""What a calibration has found: the points it measured, how well the profile prices traffic, and whether it may be
published."""

from __future__ import annotations

from dataclasses import dataclass

from model_units.calibration.design import Lengths
from model_units.calibration.search import Objective, Probe, Rates
from model_units.cost import Evidence
from model_units.fit import Fit, Row


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """One pair of lengths that the fit is made of.

    Attributes:
        input_tokens: Prompt.
        output_tokens: Answer.
        replica_s: Measured cost: one over the highest rate that keeps the objective.
        predicted_replica_s: What the fit says.
        hold_out_error: What a fit without this point says, over what was measured, minus 1.
        curve: (requests at a time, TPOT ms, p95 TTFT ms, requests per second) of every load, ascending.
    """

    input_tokens: int
    output_tokens: int
    replica_s: float
    predicted_replica_s: float
    hold_out_error: float
    curve: tuple[tuple[int, float, float, float], ...]


@dataclass(frozen=True, slots=True)
class MeasuredClass:
    """A mix of one traffic class.

    Attributes:
        name: The class.
        error: What a fit without this mix says it costs, over what was measured, minus 1: 0.02 is 2 % too dear.
        requests_per_s: What the replica sustains of it.
    """

    name: str
    error: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a calibration is.

    Attributes:
        fraction: Part of the work that is done, 0 to 1.
        engine_s: Replica time used.
        engine_left_s: Replica time expected to be left.
        detail: What it does, for people.
    """

    fraction: float
    engine_s: float
    engine_left_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known so far.

    Attributes:
        objective: What full load keeps.
        fit: The cost function; None before there are enough points.
        rows: What it was fitted to: the points, then the mixes.
        points: The points, in the order of the rows.
        classes: The traffic classes measured so far, in the order of the rows behind the points.
        evidence: For the profile; None without a fit.
        objections: Why the profile should not be published, for people; empty when it may.
    """

    objective: Objective
    fit: Fit | None
    rows: tuple[Row, ...]
    points: tuple[MeasuredPoint, ...]
    classes: tuple[MeasuredClass, ...]
    evidence: Evidence | None
    objections: tuple[str, ...]

    @property
    def acceptable(self) -> bool:
        """Whether the profile may be published."""
        return self.fit is not None and not self.objections


@dataclass(frozen=True, slots=True)
class Target:
    """Something whose highest sustained load was looked for.

    Attributes:
        lengths: The point, or None for a mix.
        traffic_class: The mix, or "" for a point.
        probes: The loads.
        rates: Work per second at the highest.
    """

    lengths: Lengths | None
    traffic_class: str
    probes: tuple[Probe, ...]
    rates: Rates

    def row(self, weight: float) -> Row:
        """One second of a replica at full load."""
        rates = self.rates
        return Row(
            input_tokens=rates.input_tokens,
            input_squares=rates.input_squares,
            output_tokens=rates.output_tokens,
            context_tokens=rates.context_tokens,
            product_tokens=rates.output_tokens * rates.input_tokens / max(rates.requests, 1e-12),
            replica_s=1.0,
            weight=weight,
        )
