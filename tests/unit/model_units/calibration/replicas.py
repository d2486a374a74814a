"""Made-up replicas whose true costs are known, and how a calibration is carried out on one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from engines.simulated.hardware import HARDWARE
from engines.simulated.rehearsal import rehearse
from model_units.calibration.calibrator import Calibrator, EngineLimits
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.calibration.search import Objective
from model_units.cost import CostForm
from model_units.fit import Row

Replica = Callable[[LoadSpec], LoadResult]

H100_LIMITS = EngineLimits(256, HARDWARE["h100"].kv_capacity_tokens, 16_384)
EMPTY = LoadResult(0.0, 90.0, 0, 0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, cut_short=True)


@dataclass(frozen=True)
class LinearReplica:
    """Takes t0 + k * n milliseconds per output token with n requests at a time, so that a request costs, at the
    objective, exactly what the coefficients say.

    Attributes:
        coefficients: a, b, d, g.
        idle_ms: t0.
        objective_ms: Where the coefficients are true.
    """

    coefficients: tuple[float, float, float, float] = (2e-5, 3e-5, 5e-10, 5e-8)
    idle_ms: float = 8.0
    objective_ms: float = 50.0

    def cost_s(self, read: float, made: float) -> float:
        """Replica-seconds of a request."""
        row = Row.of_request(read, made, 1.0)
        a, b, d, g = self.coefficients
        return a * row.input_tokens + b * row.output_tokens + d * row.input_squares + g * row.context_tokens

    def __call__(self, load: LoadSpec) -> LoadResult:
        """What a load comes to; the window is so long that whole requests are no matter."""
        count = len(load.lengths)
        made = sum(pair[1] for pair in load.lengths) / count
        cost_s = sum(self.cost_s(*pair) for pair in load.lengths) / count
        per_request_ms = 1e3 * cost_s * (1 - self.idle_ms / self.objective_ms) / made
        tpot_s = (self.idle_ms + per_request_ms * load.concurrency) / 1e3
        window_s = 1e5
        requests = round(window_s * load.concurrency / (made * tpot_s))
        return LoadResult(
            window_s=window_s,
            engine_s=10.0,
            first_tokens=requests,
            output_tokens=round(requests * made),
            decoding_s=requests * (made - 1) * tpot_s,
            input_tokens=round(requests * sum(pair[0] for pair in load.lengths) / count),
            input_squares=requests * sum(pair[0] ** 2 for pair in load.lengths) / count,
            context_tokens=requests * sum(made * (read + made / 2) for read, made in load.lengths) / count,
            ttft_s_p50=0.02,
            ttft_s_p95=0.03,
        )


def slower(result: LoadResult, factor: float) -> LoadResult:
    """The same from a replica whose every step takes longer by a factor."""
    return replace(result, window_s=factor * result.window_s, decoding_s=factor * result.decoding_s)


def calibrate(calibrator: Calibrator, replica: Replica) -> list[tuple[LoadSpec, LoadResult]]:
    """Carries a calibration out to its end, which must come."""
    done = []
    while (load := calibrator.next()) is not None:
        result = replica(load)
        calibrator.record(result)
        done.append((load, result))
        assert len(done) < 200, "the calibration does not end"
    return done


@functools.cache
def calibrated_h100(form: CostForm = CostForm.ATTENTION) -> tuple[Calibrator, list[tuple[LoadSpec, LoadResult]]]:
    """A whole calibration of the simulated H100."""
    calibrator = Calibrator(H100_LIMITS, Objective(50.0), form=form)
    return calibrator, calibrate(calibrator, lambda load: rehearse(HARDWARE["h100"], load))
