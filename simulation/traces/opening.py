"""The one way to a workload: any file of load, recognised, read or drawn from."""

from __future__ import annotations

from pathlib import Path

from fairlead.errors import InvalidArgumentError
from simulation.traces.image_quantiles import quantiles_workload
from simulation.traces.lengths_only import lengths_workload
from simulation.traces.rate_curve import curve_workload
from simulation.traces.recognise import Kind, partner_of, recognise
from simulation.traces.recorded import recorded_workload
from simulation.traces.servegen import servegen_workload
from simulation.traces.workload import Selection, Workload


def open_workload(
    path: Path | str,
    *,
    seed: int = 1,
    start_s: float = 0.0,
    duration_s: float | None = None,
    rate_scale: float = 1.0,
    requests_per_s: float | None = None,
) -> Workload:
    """Makes a stream of requests of a file.

    Args:
        path: Any kind that `recognise` knows except step times; one file of a pair of rates and lengths stands for
            both.
        seed: Of what is drawn, 0 or more; recorded requests are not drawn.
        start_s: Where to begin, seconds after the file's beginning.
        duration_s: Length of the workload, seconds. When None: to the file's end; for lengths without times as long as
            the rows last, for quantiles 600 s.
        rate_scale: Factor on the rate, above 0.
        requests_per_s: Mean rate of this part, instead of the file's own; needed where the file has none. Multiplied by
            `rate_scale`.

    Returns:
        The requests, at least one, with notes on everything that was assumed.

    Raises:
        InvalidArgumentError: An argument is out of range, the file is wrong, or the part is empty or too large.
    """
    path = Path(path)
    selection = Selection(seed, start_s, duration_s, rate_scale, requests_per_s)
    match kind := recognise(path):
        case Kind.REQUESTS | Kind.PREFIXED_REQUESTS:
            return recorded_workload(path, selection)
        case Kind.CLIENT_RATES:
            return servegen_workload(path, partner_of(path, kind), selection)
        case Kind.CLIENT_LENGTHS:
            return servegen_workload(partner_of(path, kind), path, selection)
        case Kind.LENGTHS:
            return lengths_workload(path, selection)
        case Kind.RATE_CURVE:
            return curve_workload(path, selection)
        case Kind.QUANTILES:
            return quantiles_workload(path, selection)
        case Kind.STEP_TIMES:
            raise InvalidArgumentError(f"{path.name} holds {kind}, which are no load", field="trace")
